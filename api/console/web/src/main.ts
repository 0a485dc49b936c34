import { mount } from "svelte";
import App from "./App.svelte";
import { key } from "./api/key.svelte";
import "./app.css";

const target = document.getElementById("app");
if (target === null) throw new Error("the page lacks #app");
await key.askAround();
mount(App, { target });
