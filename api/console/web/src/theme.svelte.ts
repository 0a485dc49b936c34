// Light, dark, or as the system says; kept by this browser, the same in all its tabs. theme.boot.js sets it at the start.

export type Theme = "light" | "dark" | "system";

export const THEMES: readonly { value: Theme; words: string }[] = [
  { value: "system", words: "System" },
  { value: "light", words: "Light" },
  { value: "dark", words: "Dark" },
];

const SLOT = "duolora.theme";

const among = (text: string | null | undefined): Theme => THEMES.find(({ value }) => value === text)?.value ?? "system";

class Look {
  theme = $state<Theme>(among(document.documentElement.dataset.theme));

  constructor() {
    addEventListener("storage", ({ key, newValue }) => {
      if (key === SLOT || key === null) this.#show(among(newValue));
    });
  }

  choose(theme: Theme): void {
    this.#show(theme);
    try {
      if (theme === "system") localStorage.removeItem(SLOT);
      else localStorage.setItem(SLOT, theme);
    } catch {
      // Then it holds until the page is loaded again.
    }
  }

  #show(theme: Theme): void {
    this.theme = theme;
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }
}

export const look = new Look();
