-- Requested work and what became of it. A row's left half comes from `commands`, its right half from `jobs`.
CREATE TABLE job (
    job             text COLLATE "C" PRIMARY KEY,
    kind            text NOT NULL,
    asset           text COLLATE "C" NOT NULL,
    requester       text NOT NULL DEFAULT '',
    requested_us    bigint,
    deadline_us     bigint,
    parameters      text NOT NULL DEFAULT '',
    node            text NOT NULL DEFAULT '',
    asked_priority  bigint NOT NULL DEFAULT 0,
    state           text NOT NULL DEFAULT 'requested',
    state_us        bigint NOT NULL DEFAULT 0,
    state_by        text NOT NULL DEFAULT '',
    message         text NOT NULL DEFAULT '',
    done            bigint NOT NULL DEFAULT 0,
    total           bigint NOT NULL DEFAULT 0,
    unit            text NOT NULL DEFAULT '',
    problems        text NOT NULL DEFAULT '[]',
    result          text NOT NULL DEFAULT '',
    started_us      bigint,
    finished_us     bigint,
    -- What decides which change counts next (streams.job_states.Life).
    phase           text NOT NULL DEFAULT 'waiting',
    claim           text DEFAULT '',
    holder          text NOT NULL DEFAULT '',
    last            text NOT NULL DEFAULT '',
    claims          bigint NOT NULL DEFAULT 0,
    cancel          text NOT NULL DEFAULT '',
    cancel_us       bigint,
    priority_said   bigint
);
CREATE INDEX job_asset ON job (asset, job);
CREATE INDEX job_open ON job (job) WHERE state NOT IN ('finished', 'failed', 'cancelled');

CREATE TABLE job_event (
    job             text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    at_us           bigint NOT NULL,
    state           text NOT NULL,
    by              text NOT NULL,
    message         text NOT NULL,
    done            bigint NOT NULL,
    total           bigint NOT NULL,
    unit            text NOT NULL,
    problems        text NOT NULL,
    result          text NOT NULL,
    claim           text NOT NULL,
    priority        bigint NOT NULL,
    counted         bigint NOT NULL,
    PRIMARY KEY (job, event)
);
CREATE INDEX job_event_order ON job_event (job, hlc, event);
