// Submits a batch, watches it, and prints its results, one line of JSON each.
//
//   npm install && node batch.js HOST:PORT MODEL [PROMPT...]
//
// MODEL is a directory or a .gguf file on the hosts of coordinator and stages. Progress goes to standard error.
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));
const SUBMIT_DEADLINE_MS = 30_000;
const MAX_TOKENS = 32;

const definition = loadSync("llmpq/v1/coordinator_service.proto", {
  includeDirs: [PROTOS],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
});
const { CoordinatorService } = grpc.loadPackageDefinition(definition).llmpq.v1;

/** Stores a batch at the coordinator; resolves to the batch. */
function submit(client, model, prompts) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + SUBMIT_DEADLINE_MS;
    const call = client.SubmitBatch({ deadline }, (error, response) => (error ? reject(error) : resolve(response.batch)));
    call.write({ options: { model } });
    call.write({ lines: prompts.map(requestLine) });
    call.end();
  });
}

/** One line of OpenAI's batch input format. */
function requestLine(prompt, index) {
  return JSON.stringify({
    custom_id: `prompt-${index + 1}`,
    method: "POST",
    url: "/v1/completions",
    body: { prompt, max_tokens: MAX_TOKENS, temperature: 0 },
  });
}

/** Says on standard error what the batch is doing until it is in a final state; resolves to that state. */
async function watch(client, batch_id) {
  let state;
  for await (const { batch } of client.WatchBatch({ batch_id })) {
    state = batch.state;
    const answered = batch.requests_completed + batch.requests_failed;
    console.error(`${state} ${answered}/${batch.requests_total} requests, ${batch.generated_tokens} tokens ${batch.status_message}`);
  }
  return state;
}

async function main(address, model, ...prompts) {
  if (!address || !model) throw new Error("usage: node batch.js HOST:PORT MODEL [PROMPT...]");
  const client = new CoordinatorService(address, grpc.credentials.createInsecure());
  try {
    const { batch_id } = await submit(client, model, prompts.length ? prompts : ["Once upon a time", "The capital of France is"]);
    const state = await watch(client, batch_id);
    for await (const result of client.GetResults({ batch_id })) console.log(result.json);
    process.exitCode = state === "BATCH_STATE_COMPLETED" ? 0 : 1;
  } finally {
    client.close();
  }
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error.details || error.message);
  process.exitCode = 1;
});
