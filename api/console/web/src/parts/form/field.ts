/** The id of the input that a JSON pointer names. */
export const fieldId = (pointer: string): string => `field${pointer.replaceAll("/", "-")}`;
