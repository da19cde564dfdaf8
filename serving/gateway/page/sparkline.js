// A small line of a figure over the versions of a model.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, EDGE] = [240, 80, 8];

// `history` are [version, value], the oldest first.
export function sparkline(history) {
  const values = history.map(([, value]) => value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const across = (place) => EDGE + (place * (WIDTH - 2 * EDGE)) / (values.length - 1);
  const up = (value) => HEIGHT - EDGE - (high > low ? (value - low) / (high - low) : 0.5) * (HEIGHT - 2 * EDGE);
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  picture.setAttribute("class", "sparkline");
  picture.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", values.map((value, place) => `${across(place)},${up(value)}`).join(" "));
  picture.append(line);
  return picture;
}
