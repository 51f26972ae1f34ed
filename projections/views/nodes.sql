-- Agents: everything that was said of who has which name.
CREATE TABLE node_change (
    node            text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    counts          bigint NOT NULL,
    state           text NOT NULL,
    run             text NOT NULL,
    replaces        text NOT NULL,
    home            text NOT NULL,
    boot            text NOT NULL,
    machine         text NOT NULL,
    version         text NOT NULL,
    names           text NOT NULL,
    lease_s         bigint NOT NULL,
    at_us           bigint NOT NULL,
    PRIMARY KEY (node, event)
);
