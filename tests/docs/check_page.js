(() => {
  const complaints = new Set();
  const parse = (color) => {
    const [r, g, b, a = 1] = (color.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
    return color === "transparent" ? [0, 0, 0, 0] : [r, g, b, a];
  };
  const over = ([r, g, b, a], below) =>
    [r, g, b].map((value, i) => value * a + below[i] * (1 - a)).concat(1);
  const luminance = (color) => {
    const [r, g, b] = color.slice(0, 3).map((value) => {
      value /= 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    if (!element) return [255, 255, 255, 1];
    const own = parse(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, behind(element.parentElement));
  };
  // What lies behind a text in a drawing: the last shape before it that is filled.
  const drawnBehind = (text) => {
    const box = text.getBoundingClientRect();
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    let color = behind(text.ownerSVGElement);
    for (const shape of text.ownerSVGElement.querySelectorAll("rect")) {
      if (!(shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING)) continue;
      const area = shape.getBoundingClientRect();
      const holds = area.left <= x && x <= area.right && area.top <= y && y <= area.bottom;
      const fill = getComputedStyle(shape).fill;
      if (holds && fill !== "none") color = over(parse(fill), color);
    }
    return color;
  };
  const name = (element) =>
    `${element.tagName.toLowerCase()}.${element.getAttribute("class") || ""} "${element.textContent.trim().replace(/\s+/g, " ").slice(0, 40)}"`;

  const page = document.scrollingElement;
  if (page.scrollWidth > innerWidth) complaints.add(`the page scrolls, ${page.scrollWidth} px wide`);
  for (const element of document.querySelectorAll("body *")) {
    const style = getComputedStyle(element);
    const scrolls = ["auto", "scroll"].includes(style.overflowX);
    if (scrolls && element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0)
      if (!element.closest("pre, .highlight") && !element.closest("aside, .sidebar-drawer"))
        complaints.add(`${name(element)} scrolls`);
  }
  for (const image of document.querySelectorAll("article img, body > img")) {
    const box = image.getBoundingClientRect();
    if (!image.complete || image.naturalWidth === 0) complaints.add(`picture ${image.src} is missing`);
    else if (box.left < 0 || box.right > innerWidth) complaints.add(`picture ${image.src} is cut`);
  }
  for (const drawing of document.querySelectorAll("svg[viewBox]")) {
    const frame = drawing.getBoundingClientRect();
    if (frame.width === 0) continue;
    if (frame.left < 0 || frame.right > innerWidth) complaints.add("a drawing is cut");
    for (const text of drawing.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      const inside = box.left >= frame.left && box.right <= frame.right && box.bottom <= frame.bottom;
      if (!inside) complaints.add(`the drawing's text ${name(text)} is cut`);
    }
  }
  const seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (seen.has(element) || !walker.currentNode.data.trim()) continue;
    seen.add(element);
    if (element.closest("script, style, title, desc, noscript, .headerlink, [hidden]")) continue;
    if (!element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    const isDrawn = element instanceof SVGTextElement;
    const ground = isDrawn ? drawnBehind(element) : behind(element);
    const ink = over(parse(isDrawn ? style.fill : style.color), ground);
    const [more, less] = [luminance(ink), luminance(ground)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const contrast = (more + 0.05) / (less + 0.05);
    if (contrast < least)
      complaints.add(`contrast ${contrast.toFixed(2)} of ${name(element)}: ${ink.map(Math.round)} on ${ground.map(Math.round)}`);
  }
  return [...complaints];
})()
