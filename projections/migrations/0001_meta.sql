-- Bookkeeping of views: which generation of each is live, and how far each has read the log.

CREATE TABLE holdfast.view (
    view            text PRIMARY KEY,
    version         bigint NOT NULL,             -- of the module that made the live tables
    generation      bigint NOT NULL,             -- the live one
    newest          bigint NOT NULL,             -- the newest ever begun; numbers are not used twice
    state           text NOT NULL CHECK (state IN ('live', 'dropped')),
    dropped_digest  text                         -- JSON (projections.digest), to compare with after a rebuild
);

-- A view's rows and its offsets are written in one transaction, by compare-and-set. An offset means nothing without the
-- identity of the topic it counts in.
CREATE TABLE holdfast.view_offset (
    view            text NOT NULL,
    generation      bigint NOT NULL,
    topic           text NOT NULL,               -- full name, prefix included
    partition       bigint NOT NULL,
    topic_id        text NOT NULL,
    next_offset     bigint NOT NULL,             -- of the first record not applied
    PRIMARY KEY (view, generation, topic, partition)
);
