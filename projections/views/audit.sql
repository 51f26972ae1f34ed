-- Calls of the API: who asked for what, and what came of it.
CREATE TABLE call (
    request         text COLLATE "C" PRIMARY KEY,
    at_us           bigint NOT NULL,
    actor           text COLLATE "C" NOT NULL,
    role            text NOT NULL,
    token           text NOT NULL,
    action          text COLLATE "C" NOT NULL,
    object          text COLLATE "C" NOT NULL,
    outcome         bigint NOT NULL,
    detail          text NOT NULL,
    remote          text NOT NULL
);
CREATE INDEX call_time ON call (at_us, request);
CREATE INDEX call_actor ON call (actor, at_us, request);
CREATE INDEX call_action ON call (action, at_us, request);
CREATE INDEX call_object ON call (object, at_us, request);
