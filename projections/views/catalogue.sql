-- Sources as they are defined and what state they are in; every change; the lineages that were ever captured.
CREATE TABLE source (
    source          text COLLATE "C" PRIMARY KEY,
    kind            text NOT NULL DEFAULT '',
    host            text NOT NULL DEFAULT '',
    port            bigint NOT NULL DEFAULT 0,
    tls             text NOT NULL DEFAULT 'off',
    tls_ca          text NOT NULL DEFAULT '',
    accounts        text NOT NULL DEFAULT '{}',
    secrets         text NOT NULL DEFAULT '{}',
    options         text NOT NULL DEFAULT '{}',
    defined_us      bigint NOT NULL DEFAULT 0,
    defined_by      text NOT NULL DEFAULT '',
    state           text NOT NULL DEFAULT 'defined',
    state_us        bigint NOT NULL DEFAULT 0,
    state_by        text NOT NULL DEFAULT '',
    lineage         text,
    epoch           bigint NOT NULL DEFAULT 0,
    server_version  text NOT NULL DEFAULT '',
    capability      text NOT NULL DEFAULT '[]',
    position        text NOT NULL DEFAULT '',
    ordinal         bigint NOT NULL DEFAULT 0,
    baseline        text NOT NULL DEFAULT '',
    problems        text NOT NULL DEFAULT '[]'
);

CREATE TABLE source_event (
    source          text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    at_us           bigint NOT NULL,
    state           text NOT NULL,
    by              text NOT NULL,
    lineage         text,
    epoch           bigint NOT NULL,
    position        text NOT NULL,
    ordinal         bigint NOT NULL,
    problems        text NOT NULL,
    PRIMARY KEY (source, event)
);

CREATE TABLE lineage (
    source          text COLLATE "C" NOT NULL,
    lineage         text COLLATE "C" NOT NULL,
    epoch           bigint NOT NULL,
    first_us        bigint NOT NULL,
    last_us         bigint NOT NULL,
    baseline        text NOT NULL,
    PRIMARY KEY (source, lineage)
);
