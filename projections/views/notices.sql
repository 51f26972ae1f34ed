-- Changes of how well assets are protected, as they were said.
CREATE TABLE protection_change (
    kind            text COLLATE "C" NOT NULL,
    asset           text COLLATE "C" NOT NULL,
    event           text COLLATE "C" NOT NULL,
    hlc             bigint NOT NULL,
    counts          bigint NOT NULL,
    state           text NOT NULL,
    before          text NOT NULL,
    policy          text NOT NULL,
    late_s          bigint NOT NULL,
    proof           text NOT NULL,
    at_us           bigint NOT NULL,
    by              text NOT NULL,
    PRIMARY KEY (kind, asset, event)
);
CREATE INDEX protection_change_newest ON protection_change (hlc, event) WHERE counts = 1;
