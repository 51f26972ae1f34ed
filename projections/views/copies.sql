-- Scratch copies as last said; plans to bring one table back, and what became of them.
CREATE TABLE scratch (
    scratch         text COLLATE "C" PRIMARY KEY,
    source          text COLLATE "C" NOT NULL,
    state           text NOT NULL,
    lineage         text,
    ordinal         bigint NOT NULL,
    position        text NOT NULL,
    tables          text NOT NULL,
    host            text NOT NULL,
    port            bigint NOT NULL,
    socket          text NOT NULL,
    account         text NOT NULL,
    password_file   text NOT NULL,
    expires_us      bigint,
    size_bytes      bigint NOT NULL,
    job             text NOT NULL,
    at_us           bigint NOT NULL,
    by              text NOT NULL,
    problems        text NOT NULL,
    hlc             bigint NOT NULL
);

CREATE TABLE table_plan (
    plan            text COLLATE "C" PRIMARY KEY,
    source          text COLLATE "C" NOT NULL,
    event           text NOT NULL
);
CREATE INDEX table_plan_source ON table_plan (source, plan);

CREATE TABLE table_plan_change (
    plan            text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    state           text NOT NULL,
    at_us           bigint NOT NULL,
    by              text NOT NULL,
    position        text NOT NULL,
    rows            bigint NOT NULL,
    kept            text NOT NULL,
    problems        text NOT NULL,
    PRIMARY KEY (plan, event)
);
