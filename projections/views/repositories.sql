-- Repositories as they were defined, who works or worked in them, the points they hold, marks, collections, checks.
CREATE TABLE repository_definition (
    repository      text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    identity        text NOT NULL,
    state           text NOT NULL,
    store           text NOT NULL,
    location        text NOT NULL,
    node            text NOT NULL,
    encrypted       bigint NOT NULL,
    options         text NOT NULL,
    secrets         text NOT NULL,
    retention       text NOT NULL,
    protected_from  text NOT NULL,
    defined_us      bigint NOT NULL,
    by              text NOT NULL,
    PRIMARY KEY (repository, event)
);

CREATE TABLE repository_session (
    session         text COLLATE "C" PRIMARY KEY,
    repository      text COLLATE "C" NOT NULL,
    kind            text NOT NULL,
    node            text NOT NULL,
    asset           text NOT NULL,
    job             text NOT NULL,
    opened_us       bigint NOT NULL,
    opened_hlc      bigint NOT NULL,
    by              text NOT NULL,
    state           text NOT NULL,
    ended_us        bigint,
    ended_hlc       bigint,
    outcome         text NOT NULL,
    figures         text NOT NULL,
    problems        text NOT NULL
);
CREATE INDEX repository_session_open ON repository_session (repository) WHERE ended_hlc IS NULL;

-- `counts`, here and below: whether the event did where it stands, by the rules of the repository's ledger. What a fenced session
-- says, or a drop of a point that is held, is kept and not shown.
CREATE TABLE point (
    point           text COLLATE "C" NOT NULL,
    repository      text COLLATE "C" NOT NULL,
    counts          bigint NOT NULL,
    session         text NOT NULL,
    asset           text COLLATE "C" NOT NULL,
    asset_name      text NOT NULL,
    kind            text NOT NULL,
    continues       text NOT NULL,
    created_us      bigint NOT NULL,
    sealed_us       bigint NOT NULL,
    sealed_hlc      bigint NOT NULL,
    by              text NOT NULL,
    disks           text NOT NULL,
    files_root      text NOT NULL,
    record          text NOT NULL,
    size_bytes      bigint NOT NULL,
    stored_bytes    bigint NOT NULL,
    figures         text NOT NULL,
    facts           text NOT NULL,
    adopted         bigint NOT NULL,
    dropped_us      bigint,
    dropped_hlc     bigint,
    dropped_by      text NOT NULL,
    reason          text NOT NULL,
    PRIMARY KEY (point, repository)
);
CREATE INDEX point_created ON point (created_us, point);
CREATE INDEX point_of ON point (repository, asset, created_us);

CREATE TABLE point_drop (
    repository      text COLLATE "C" NOT NULL,
    point           text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    counts          bigint NOT NULL,
    reason          text NOT NULL,
    early           bigint NOT NULL,
    agreed_by       text NOT NULL,
    dropped_us      bigint NOT NULL,
    by              text NOT NULL,
    PRIMARY KEY (repository, point, event)
);

CREATE TABLE point_mark (
    repository      text COLLATE "C" NOT NULL,
    point           text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    counts          bigint NOT NULL,
    mark            text NOT NULL,
    number          bigint NOT NULL,
    name            text NOT NULL,
    note            text NOT NULL,
    until_us        bigint,
    marked_us       bigint NOT NULL,
    by              text NOT NULL,
    PRIMARY KEY (repository, point, event)
);
CREATE INDEX point_mark_of ON point_mark (point);

CREATE TABLE collection_change (
    repository      text COLLATE "C" NOT NULL,
    collection      text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    session         text NOT NULL,
    state           text NOT NULL,
    marked          bigint NOT NULL,
    plan            text NOT NULL,
    digest          text NOT NULL,
    packs           bigint NOT NULL,
    points          bigint NOT NULL,
    freed_bytes     bigint NOT NULL,
    figures         text NOT NULL,
    problems        text NOT NULL,
    at_us           bigint NOT NULL,
    by              text NOT NULL,
    PRIMARY KEY (repository, collection, event)
);

CREATE TABLE repository_check (
    repository      text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    session         text NOT NULL,
    what            text NOT NULL,
    mode            text NOT NULL,
    figures         text NOT NULL,
    problems        text NOT NULL,
    at_us           bigint NOT NULL,
    by              text NOT NULL,
    PRIMARY KEY (repository, event)
);
CREATE INDEX repository_check_newest ON repository_check (repository, what, hlc);
