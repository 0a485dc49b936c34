// Runs before the first paint, so that a chosen theme is there from the start. It is served as a file of its own: the
// content security policy allows no script inside the page.
try {
  const theme = localStorage.getItem("duolora.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing shows the system's theme.
}
