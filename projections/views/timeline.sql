-- The index of every source's timeline: granules, the tables in each, steps worth knowing of, totals, rollback plans.
CREATE TABLE granule (
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C" NOT NULL,
    first_ordinal   bigint NOT NULL,
    last_ordinal    bigint NOT NULL,
    epoch           bigint NOT NULL,
    first_time_us   bigint NOT NULL,
    last_time_us    bigint NOT NULL,
    captured_us     bigint NOT NULL,
    first_position  text NOT NULL,
    last_position   text NOT NULL,
    first_domain    bigint,
    first_sequence  bigint,
    last_domain     bigint,
    last_sequence   bigint,
    payload_bytes   bigint NOT NULL,
    events          bigint NOT NULL,
    row_count       bigint NOT NULL,
    tables          text NOT NULL,
    topic_id        text NOT NULL,
    first_offset    bigint NOT NULL,
    last_offset     bigint NOT NULL,
    digest          bytea NOT NULL,
    PRIMARY KEY (source, lineage, first_ordinal)
);
-- Not by source and lineage first: a planner that knows nothing of the table yet would take these for the primary key.
CREATE INDEX granule_first_gtid ON granule (first_domain, first_sequence, source, lineage);
CREATE INDEX granule_last_gtid ON granule (last_domain, last_sequence, source, lineage);

-- Two different granules that claim to start at one step: the index cannot be trusted there, and says so.
CREATE TABLE granule_conflict (
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C" NOT NULL,
    first_ordinal   bigint NOT NULL,
    digest          bytea NOT NULL,
    PRIMARY KEY (source, lineage, first_ordinal, digest)
);

-- Newest granules of one table are a backward scan of the primary key; times are repeated so that this holds with a filter too.
CREATE TABLE granule_table (
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C" NOT NULL,
    schema_name     text COLLATE "C" NOT NULL,
    table_name      text COLLATE "C" NOT NULL,
    first_ordinal   bigint NOT NULL,
    first_time_us   bigint NOT NULL,
    last_time_us    bigint NOT NULL,
    steps           bigint NOT NULL,
    inserts         bigint NOT NULL,
    updates         bigint NOT NULL,
    deletes         bigint NOT NULL,
    PRIMARY KEY (source, lineage, schema_name, table_name, first_ordinal)
);

CREATE TABLE table_total (
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C" NOT NULL,
    schema_name     text COLLATE "C" NOT NULL,
    table_name      text COLLATE "C" NOT NULL,
    granules        bigint NOT NULL,
    steps           bigint NOT NULL,
    inserts         bigint NOT NULL,
    updates         bigint NOT NULL,
    deletes         bigint NOT NULL,
    PRIMARY KEY (source, lineage, schema_name, table_name)
);

CREATE TABLE lineage_total (
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C" NOT NULL,
    granules        bigint NOT NULL,
    steps           bigint NOT NULL,
    row_count       bigint NOT NULL,
    payload_bytes   bigint NOT NULL,
    events          bigint NOT NULL,
    PRIMARY KEY (source, lineage)
);

CREATE TABLE landmark (
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C" NOT NULL,
    ordinal         bigint NOT NULL,
    number          bigint NOT NULL,
    kind            text NOT NULL,
    label           text NOT NULL,
    plan            text NOT NULL,
    PRIMARY KEY (source, lineage, ordinal, number)
);
CREATE INDEX landmark_marker ON landmark (source, lineage, ordinal) WHERE kind IN ('marker', 'own');

-- Key runs (streams.key_runs): one a granule, merged by sixteens. A key's entries are one slice, found by the fan; EXTERNAL, so
-- that a slice is read without the rest.
CREATE TABLE key_run (
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C" NOT NULL,
    first_ordinal   bigint NOT NULL,
    last_ordinal    bigint NOT NULL,
    level           bigint NOT NULL,
    granules        bigint NOT NULL,
    fan             bytea NOT NULL,
    entries         bytea NOT NULL,
    PRIMARY KEY (source, lineage, first_ordinal)
);
ALTER TABLE key_run ALTER COLUMN entries SET STORAGE EXTERNAL;

-- By which columns a table's rows are known, in which steps; `dense`: in granules of which nobody noted the table's keys.
CREATE TABLE key_shape (
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C" NOT NULL,
    schema_name     text COLLATE "C" NOT NULL,
    table_name      text COLLATE "C" NOT NULL,
    key_columns     text COLLATE "C" NOT NULL,
    first_ordinal   bigint NOT NULL,
    last_ordinal    bigint NOT NULL,
    PRIMARY KEY (source, lineage, schema_name, table_name, key_columns)
);
CREATE TABLE key_dense (
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C" NOT NULL,
    schema_name     text COLLATE "C" NOT NULL,
    table_name      text COLLATE "C" NOT NULL,
    first_ordinal   bigint NOT NULL,
    last_ordinal    bigint NOT NULL,
    PRIMARY KEY (source, lineage, schema_name, table_name, first_ordinal)
);

CREATE TABLE plan (
    plan            text COLLATE "C" PRIMARY KEY,
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C",
    kind            text NOT NULL DEFAULT '',
    target          text NOT NULL DEFAULT '',
    target_ordinal  bigint NOT NULL DEFAULT 0,
    target_time_us  bigint NOT NULL DEFAULT 0,
    head_ordinal    bigint NOT NULL DEFAULT 0,
    path_before     text NOT NULL DEFAULT '[]',
    path_after      text NOT NULL DEFAULT '[]',
    undo            text NOT NULL DEFAULT '[]',
    redo            text NOT NULL DEFAULT '[]',
    steps           bigint NOT NULL DEFAULT 0,
    row_count       bigint NOT NULL DEFAULT 0,
    payload_bytes   bigint NOT NULL DEFAULT 0,
    tables          text NOT NULL DEFAULT '[]',
    obstacles       text NOT NULL DEFAULT '[]',
    warnings        text NOT NULL DEFAULT '[]',
    dependants      text NOT NULL DEFAULT '[]',
    dependant_steps bigint NOT NULL DEFAULT 0,
    schema_version  bytea NOT NULL DEFAULT '',
    options         text NOT NULL DEFAULT '',
    estimate_ms     bigint NOT NULL DEFAULT 0,
    digest          bytea NOT NULL DEFAULT '',
    planned_us      bigint,
    planned_by      text NOT NULL DEFAULT '',
    state           text NOT NULL DEFAULT 'planned',
    state_us        bigint NOT NULL DEFAULT 0,
    state_by        text NOT NULL DEFAULT '',
    read_only_before text NOT NULL DEFAULT '',
    position        text NOT NULL DEFAULT '',
    ordinal         bigint NOT NULL DEFAULT 0,
    applied_rows    bigint NOT NULL DEFAULT 0,
    problems        text NOT NULL DEFAULT '[]'
);
CREATE INDEX plan_source ON plan (source, plan);
CREATE INDEX plan_ordinal ON plan (source, lineage, ordinal) WHERE ordinal > 0;

CREATE TABLE plan_event (
    plan            text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    at_us           bigint NOT NULL,
    state           text NOT NULL,
    by              text NOT NULL,
    position        text NOT NULL,
    ordinal         bigint NOT NULL,
    row_count       bigint NOT NULL,
    problems        text NOT NULL,
    PRIMARY KEY (plan, event)
);
