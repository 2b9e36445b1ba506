// Colour scales out of the style sheet, so that they follow light and dark.

const probe = document.createElement("span");
probe.hidden = true;
document.documentElement.append(probe);

/** What a custom property of the style sheet is now, as [red, green, blue]. */
function resolved(property) {
  probe.style.color = `var(${property})`;
  return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
}

export const colour = (property) => `rgb(${resolved(property).join(" ")})`;

const between = (from, to, share) => from.map((value, at) => value + (to[at] - value) * share);

/** A function from 0..1 (or -1..1, where signed) to [red, green, blue]. */
export function scale(signed) {
  const zero = resolved("--heat-0");
  const [middle, most] = [resolved("--heat-1"), resolved("--heat-2")];
  const [low, lowest] = signed ? [resolved("--cold-1"), resolved("--cold-2")] : [middle, most];
  return (value) => {
    const [half, whole] = value < 0 ? [low, lowest] : [middle, most];
    const strength = Math.min(Math.abs(value), 1);
    return strength < 0.5 ? between(zero, half, 2 * strength) : between(half, whole, 2 * strength - 1);
  };
}

/** Call this whenever the colours change: by the button or by the system. */
export const recoloured = (draw) => document.addEventListener("theme", draw);
