const dark = matchMedia('(prefers-color-scheme: dark)');
const plots = JSON.parse(document.getElementById('plots').textContent);

// Plotly's code is gzip in base64: a report is 2 MB instead of 5 MB.
async function loadPlotly() {
  const packed = Uint8Array.from(atob(document.getElementById('plotly').textContent), c => c.charCodeAt(0));
  const code = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  const script = document.createElement('script');
  script.textContent = await new Response(code).text();
  document.head.append(script);
}

// A plot inside a closed <details> has no width: it is drawn when it is opened.
function draw(within) {
  for (const [id, plot] of Object.entries(plots.figures)) {
    const element = document.getElementById(id);
    if (!within.contains(element) || !element.checkVisibility()) continue;
    const layout = {...plot.layout, template: dark.matches ? plots.dark : plots.light};
    Plotly.react(element, plot.data, layout, {displaylogo: false, responsive: true, displayModeBar: false});
  }
}

// A link to #moment-3, or #plot-2, opens what holds it.
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  for (let part = target; part; part = part.parentElement) if (part.tagName === 'DETAILS') part.open = true;
  if (target) target.scrollIntoView();
}

function explain() {
  for (const id of Object.keys(plots.figures)) {
    document.getElementById(id).textContent = 'This browser cannot draw the plot; the table below has its figures.';
  }
}

openTarget();
addEventListener('hashchange', openTarget);
loadPlotly().then(() => {
  draw(document);
  dark.addEventListener('change', () => draw(document));
  document.addEventListener('toggle', event => { if (event.target.open) draw(event.target); }, true);
}, explain);
