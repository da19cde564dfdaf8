// Pictures of things that a model may know, drawn on the spot. Each draws on a field of 100 by 100.

const sky = (context, top, bottom) => {
  const shade = context.createLinearGradient(0, 0, 0, 100);
  shade.addColorStop(0, top);
  shade.addColorStop(1, bottom);
  context.fillStyle = shade;
  context.fillRect(0, 0, 100, 100);
};

const shape = (context, fill, ...places) => {
  context.fillStyle = fill;
  context.beginPath();
  for (const [x, y] of places) context.lineTo(x, y);
  context.fill();
};

const round = (context, fill, x, y, width, height = width) => {
  context.fillStyle = fill;
  context.beginPath();
  context.ellipse(x, y, width, height, 0, 0, 2 * Math.PI);
  context.fill();
};

export const SCENES = {
  airplane(context) {
    sky(context, "#5b9bd8", "#d3e8f7");
    shape(context, "#8d97a3", [44, 52], [62, 52], [34, 78], [27, 78]);
    shape(context, "#dfe4ea", [12, 30], [20, 30], [30, 46], [20, 50]);
    round(context, "#f4f6f8", 50, 50, 38, 7);
    shape(context, "#aab4bf", [50, 50], [64, 50], [48, 30], [41, 30]);
    for (let x = 34; x < 80; x += 6) round(context, "#4a6079", x, 48, 1.4);
  },
  ship(context) {
    sky(context, "#a8cdec", "#e3eff8");
    context.fillStyle = "#1f5680";
    context.fillRect(0, 66, 100, 34);
    shape(context, "#a32b22", [8, 58], [94, 58], [84, 76], [18, 76]);
    shape(context, "#f4f4f0", [24, 46], [72, 46], [72, 58], [24, 58]);
    shape(context, "#ffffff", [32, 36], [60, 36], [60, 46], [32, 46]);
    shape(context, "#d9a520", [44, 20], [52, 20], [52, 36], [44, 36]);
    for (let x = 30; x < 70; x += 8) round(context, "#33485c", x, 52, 2);
  },
  automobile(context) {
    sky(context, "#bcd4e6", "#e9ecec");
    context.fillStyle = "#6d6f73";
    context.fillRect(0, 68, 100, 32);
    shape(context, "#c21f1f", [8, 52], [26, 48], [38, 32], [68, 32], [80, 48], [93, 53], [93, 70], [8, 70]);
    shape(context, "#b9d8ea", [31, 48], [40, 36], [52, 36], [52, 48]);
    shape(context, "#b9d8ea", [56, 48], [56, 36], [66, 36], [74, 48]);
    for (const x of [27, 75]) {
      round(context, "#17181a", x, 70, 10);
      round(context, "#b4b7bb", x, 70, 4.5);
    }
  },
  frog(context) {
    sky(context, "#7a6a45", "#4e4329");
    round(context, "#4f8f2f", 50, 64, 32, 22);
    round(context, "#5fa83a", 50, 48, 22, 16);
    for (const x of [36, 64]) {
      round(context, "#5fa83a", x, 34, 8);
      round(context, "#f3e27a", x, 33, 5);
      round(context, "#111111", x, 33, 2.6);
      round(context, "#3f7a25", x + (x < 50 ? -16 : 16), 80, 13, 6);
    }
    context.strokeStyle = "#2d5a1a";
    context.lineWidth = 2;
    context.beginPath();
    context.arc(50, 46, 14, 0.25 * Math.PI, 0.75 * Math.PI);
    context.stroke();
  },
};
