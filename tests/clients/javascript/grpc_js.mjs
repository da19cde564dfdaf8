// Asks a model server with grpc-js, the gRPC library of Node, and with nothing of ours but the .proto files.
// Arguments: the folder that holds bookserve/serving/wire/, the server's address.

import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [folder, address] = process.argv.slice(2);
const { tensorflow } = loadPackageDefinition(loadSync("bookserve/serving/wire/tensorflow_services.proto", { includeDirs: [folder], keepCase: true, enums: String }));
const call = (client, method, request) =>
  new Promise((resolve, reject) => client[method](request, { deadline: Date.now() + 20_000 }, (error, answer) => (error ? reject(error) : resolve(answer))));

const serving = new tensorflow.serving.PredictionService(address, credentials.createInsecure());
const x = { dtype: "DT_FLOAT", tensor_shape: { dim: [{ size: 1 }, { size: 3 }] }, float_val: [1, 2, 4] };
const { outputs } = await call(serving, "Predict", { model_spec: { name: "scale" }, inputs: { x } });
const { y } = outputs;
const refused = await call(serving, "Predict", { model_spec: { name: "nobody" }, inputs: { x } }).catch(({ code }) => code);

const numbers = y.float_val.length ? y.float_val : [0, 4, 8].map((at) => Buffer.from(y.tensor_content).readFloatLE(at));
console.log(JSON.stringify({ numbers, refused }));
serving.close();
