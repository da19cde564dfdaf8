// What assays of the public toxicity challenge of NCATS (2014) ask, by their labels, in words for a person.

export const ASSAYS = {
  "NR-AR": "binds the androgen receptor",
  "NR-AR-LBD": "binds the androgen receptor’s hormone site",
  "NR-AhR": "turns on the receptor for dioxins",
  "NR-Aromatase": "blocks the making of estrogen",
  "NR-ER": "binds the estrogen receptor",
  "NR-ER-LBD": "binds the estrogen receptor’s hormone site",
  "NR-PPAR-gamma": "turns on a receptor of fat metabolism",
  "SR-ARE": "causes oxidative stress",
  "SR-ATAD5": "damages DNA while it is copied",
  "SR-HSE": "damages proteins (heat shock response)",
  "SR-MMP": "disturbs mitochondria",
  "SR-p53": "damages DNA (p53 response)",
};
