-- The Kafka cluster that offsets, and outbox rows that are marked sent, speak of. Another one that answers in its place has
-- never heard of the runs: nobody works with it until `runyard replay --open-runs` has told it and named it here.
CREATE TABLE broker (
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    cluster_id  text    NOT NULL
);
