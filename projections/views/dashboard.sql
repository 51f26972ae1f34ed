-- Figures for people: what each source wrote in each minute and table (from granules), who is alive (from health).
CREATE TABLE dashboard_granule (
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C" NOT NULL,
    first_ordinal   bigint NOT NULL,
    PRIMARY KEY (source, lineage, first_ordinal)
);

CREATE TABLE source_minute (
    source          text COLLATE "C" NOT NULL,
    minute_us       bigint NOT NULL,
    granules        bigint NOT NULL,
    steps           bigint NOT NULL,
    row_count       bigint NOT NULL,
    payload_bytes   bigint NOT NULL,
    PRIMARY KEY (source, minute_us)
);

CREATE TABLE dashboard_table (
    source          text COLLATE "C" NOT NULL,
    schema_name     text COLLATE "C" NOT NULL,
    table_name      text COLLATE "C" NOT NULL,
    steps           bigint NOT NULL,
    inserts         bigint NOT NULL,
    updates         bigint NOT NULL,
    deletes         bigint NOT NULL,
    last_time_us    bigint NOT NULL,
    PRIMARY KEY (source, schema_name, table_name)
);

-- Fed by health alone, which is kept for days: not in the digest.
CREATE TABLE health_minute (
    source          text COLLATE "C" NOT NULL,
    minute_us       bigint NOT NULL,
    lag_ms          double precision,
    ordinal         bigint NOT NULL,
    PRIMARY KEY (source, minute_us)
);

CREATE TABLE agent_health (
    agent           text COLLATE "C" NOT NULL,
    source          text COLLATE "C" NOT NULL,
    state           text NOT NULL,
    at_us           bigint NOT NULL,
    hlc             bigint NOT NULL,
    event           text COLLATE "C" NOT NULL,
    ordinal         bigint NOT NULL,
    position        text NOT NULL,
    figures         text NOT NULL,
    PRIMARY KEY (agent, source)
);
