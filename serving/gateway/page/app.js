// The page: starts the panel of every model.

import { startCifar10 } from "./cifar10.js";
import { startLinear } from "./linear.js";
import { startLogistic } from "./logistic.js";
import { startMnist } from "./mnist.js";
import { startPtb } from "./ptb.js";
import { showHealth } from "./shared.js";
import { startTictactoe } from "./tictactoe.js";
import { startTox21 } from "./tox21.js";

for (const start of [startLinear, startLogistic, startTox21, startMnist, startPtb, startCifar10, startTictactoe]) start();
showHealth();
setInterval(showHealth, 20_000);
