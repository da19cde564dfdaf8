// The page: starts the panel of every model.

import { startMnist } from "./mnist.js";
import { showHealth } from "./shared.js";

startMnist();
showHealth();
