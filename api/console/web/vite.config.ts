import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// During `npm run dev` a service that runs elsewhere answers everything that is not a file of the console.
const service = "http://127.0.0.1:8000";

export default defineConfig({
  base: "./", // also works behind a proxy that serves the API under a path
  plugins: [svelte()],
  build: {
    outDir: "../dist",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // the content security policy allows no data: URLs
    modulePreload: { polyfill: false },
  },
  server: {
    proxy: Object.fromEntries(["/jobs", "/recipes", "/loras", "/webhooks", "/keys", "/console.json"].map((path) => [path, service])),
  },
});
