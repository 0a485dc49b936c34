import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";

// During `npm run dev` a service that runs elsewhere answers everything that is not a file of the console.
const service = "http://127.0.0.1:8000";

/** Puts a script without imports before everything else in the page, which waits for it; modules come after the first paint. */
function firstScript(path: string): Plugin {
  return {
    name: "first-script",
    buildStart() {
      if (!this.meta.watchMode) this.emitFile({ type: "chunk", id: path, name: "theme" });
    },
    transformIndexHtml: {
      order: "post",
      handler(_, { bundle }) {
        const built = Object.values(bundle ?? {}).find((each) => each.type === "chunk" && each.name === "theme");
        return [{ tag: "script", attrs: { src: built ? `./${built.fileName}` : path }, injectTo: "head-prepend" }];
      },
    },
  };
}

export default defineConfig({
  base: "./", // also works behind a proxy that serves the API under a path
  plugins: [svelte(), firstScript("/src/theme.boot.js")],
  build: {
    outDir: "../dist",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // the content security policy allows no data: URLs
    modulePreload: { polyfill: false },
  },
  server: {
    fs: { allow: [".", "../../snippets"] },
    proxy: Object.fromEntries(["/jobs", "/recipes", "/loras", "/webhooks", "/keys", "/console.json"].map((path) => [path, service])),
  },
});
