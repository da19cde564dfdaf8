// The page /docs: Swagger UI over /openapi.json. Its files come from the package flask-swagger-ui.

const SwaggerUI = window.SwaggerUIBundle;

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
follow();
dark.addEventListener("change", follow);

SwaggerUI({
  url: "/openapi.json",
  dom_id: "#operations",
  deepLinking: true,
  defaultModelsExpandDepth: -1,
  docExpansion: "list",
  validatorUrl: null,
  syntaxHighlight: false,
});
