-- Policies: every definition that was said, what stands, runs that were made, and everything said of runs.
CREATE TABLE policy_change (
    policy          text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    counts          bigint NOT NULL,
    state           text NOT NULL,
    version         bigint NOT NULL,
    document        text NOT NULL,
    note            text NOT NULL,
    at_us           bigint NOT NULL,
    by              text NOT NULL,
    PRIMARY KEY (policy, event)
);

CREATE TABLE policy_standing (
    policy          text COLLATE "C" PRIMARY KEY,
    version         bigint NOT NULL,
    document        text NOT NULL,
    removed         bigint NOT NULL,
    since_us        bigint NOT NULL,
    decided_us      bigint NOT NULL
);

CREATE TABLE policy_run (
    run             text COLLATE "C" PRIMARY KEY,
    policy          text COLLATE "C" NOT NULL,
    version         bigint NOT NULL,
    instant_us      bigint NOT NULL,
    closes_us       bigint,
    reason          text NOT NULL,
    message         text NOT NULL,
    assets          text NOT NULL,
    left_out        text NOT NULL,
    figures         text NOT NULL,
    fired_us        bigint NOT NULL,
    fired_hlc       bigint NOT NULL,
    by              text NOT NULL,
    ended_us        bigint,
    ended_hlc       bigint
);
CREATE INDEX policy_run_of ON policy_run (policy, fired_us, run);

CREATE TABLE policy_said (
    policy          text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    counts          bigint NOT NULL,
    answered        bigint NOT NULL,
    version         bigint NOT NULL,
    run             text COLLATE "C" NOT NULL,
    state           text NOT NULL,
    instant_us      bigint NOT NULL,
    until_us        bigint NOT NULL,
    reason          text NOT NULL,
    message         text NOT NULL,
    left_out        text NOT NULL,
    figures         text NOT NULL,
    at_us           bigint NOT NULL,
    by              text NOT NULL,
    PRIMARY KEY (policy, event)
);
CREATE INDEX policy_said_run ON policy_said (run, state);
