// The page: a panel for every model that the gateway knows, and whether it can answer.

import { addPanels } from "./panels.js";
import { ask, element, showHealth } from "./shared.js";

async function look() {
  const models = await ask("/api/v1/models").then(({ models }) => models, () => []);
  await addPanels(models.map(({ name }) => name).filter((name) => !element(`${name}-link`)));
  await showHealth();
}

look();
setInterval(look, 20_000);
