// What a file is, by its first bytes; names and the types that browsers make of them can be wrong.

const HEAD_BYTES = 16;

interface Kind {
  accepted: boolean;
  /** What to do with one that is not accepted. */
  remedy: string;
}

const CONVERT = "Save it as PNG or JPEG and add that.";
const ACCEPTED: Kind = { accepted: true, remedy: "" };

const refused = (remedy: string): Kind => ({ accepted: false, remedy });

/** By what a file begins with; `.` stands for any byte. */
const KINDS: readonly (readonly [beginning: RegExp, kind: Kind])[] = [
  [/^\x89PNG\r\n\x1a\n/, ACCEPTED],
  [/^\xff\xd8\xff/, ACCEPTED],
  [/^RIFF....WEBP/s, ACCEPTED],
  [/^....ftyp(heic|heix|hevc|mif1|msf1)/s, refused("HEIC photos of phones cannot be read here. Share or export it as JPEG and add that.")],
  [/^....ftypavif/s, refused(`AVIF pictures cannot be read here. ${CONVERT}`)],
  [/^GIF8/, refused(`GIF pictures cannot be used. ${CONVERT}`)],
  [/^(II\*\0|MM\0\*)/, refused(`TIFF and raw pictures cannot be used. ${CONVERT}`)],
  [/^BM/, refused(`BMP pictures cannot be used. ${CONVERT}`)],
  [/^PK/, refused("This is an archive. Unpack it and add the pictures in it.")],
];

const UNKNOWN = refused("This is no PNG, JPEG or WebP picture. Only these can be used: convert it, or choose another file.");

/** Tell what a file is. */
export async function kindOf(file: File): Promise<Kind> {
  const head = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer());
  const text = String.fromCharCode(...head);
  return KINDS.find(([beginning]) => beginning.test(text))?.[1] ?? UNKNOWN;
}
