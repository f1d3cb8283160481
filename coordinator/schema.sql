-- The job store. Times are RFC 3339 in UTC; options, parameters, plan and stages are JSON; tokens are int32, native order.
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of submission
    batch_id TEXT NOT NULL UNIQUE,
    request_id TEXT UNIQUE,                    -- null if the client gave none
    model TEXT NOT NULL,                       -- of the options, or of the lines where they name none
    options TEXT NOT NULL,
    state TEXT NOT NULL,
    status_message TEXT NOT NULL,
    requests_total INTEGER NOT NULL,
    requests_completed INTEGER NOT NULL DEFAULT 0,
    requests_failed INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    generated_tokens INTEGER NOT NULL DEFAULT 0,
    remaining_tokens_max INTEGER NOT NULL DEFAULT 0,
    create_time TEXT NOT NULL,
    start_time TEXT,
    end_time TEXT,
    plan TEXT,
    stages TEXT NOT NULL DEFAULT '[]'
);

CREATE TABLE IF NOT EXISTS lines (
    batch_id TEXT NOT NULL REFERENCES batches (batch_id),
    line_number INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (batch_id, line_number)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS requests (
    batch_id TEXT NOT NULL,
    line_number INTEGER NOT NULL,
    prompt BLOB NOT NULL,
    parameters TEXT NOT NULL,
    PRIMARY KEY (batch_id, line_number),
    FOREIGN KEY (batch_id, line_number) REFERENCES lines (batch_id, line_number)
) WITHOUT ROWID;

-- Tokens of unfinished requests, by their place in the answer.
CREATE TABLE IF NOT EXISTS journal (
    batch_id TEXT NOT NULL,
    line_number INTEGER NOT NULL,
    place INTEGER NOT NULL,
    token INTEGER NOT NULL,
    PRIMARY KEY (batch_id, line_number, place)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS results (
    batch_id TEXT NOT NULL REFERENCES batches (batch_id),
    sequence INTEGER NOT NULL,                 -- order of completion, from 1
    line_number INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    is_error INTEGER NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (batch_id, sequence),
    UNIQUE (batch_id, line_number)             -- every line is answered once
) WITHOUT ROWID;
