"""The web console: a page built beforehand from `web/` into `dist/`, and what it is served with."""
