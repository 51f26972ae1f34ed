-- Hosts as they were defined, and machines as they were seen on them: everything that was said, so that any moment can be asked for.
CREATE TABLE host_definition (
    host            text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    kind            text NOT NULL,
    state           text NOT NULL,
    url             text NOT NULL,
    account         text NOT NULL,
    tls_ca          text NOT NULL,
    secrets         text NOT NULL,
    options         text NOT NULL,
    version         text NOT NULL,
    problems        text NOT NULL,
    defined_us      bigint NOT NULL,
    by              text NOT NULL,
    PRIMARY KEY (host, event)
);

CREATE TABLE asset_change (
    asset           text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    state           text NOT NULL,
    host            text COLLATE "C" NOT NULL,
    native          text NOT NULL,
    name            text NOT NULL,
    folder          text NOT NULL,
    tags            text NOT NULL,
    power           text NOT NULL,
    cpus            bigint NOT NULL,
    memory          bigint NOT NULL,
    firmware        text NOT NULL,
    disks           text NOT NULL,
    nics            text NOT NULL,
    seen_us         bigint NOT NULL,
    by              text NOT NULL,
    PRIMARY KEY (asset, event)
);
