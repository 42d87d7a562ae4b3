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

function draw() {
  for (const [id, plot] of Object.entries(plots.figures)) {
    const layout = {...plot.layout, template: dark.matches ? plots.dark : plots.light};
    Plotly.react(id, plot.data, layout, {displaylogo: false, responsive: true, displayModeBar: false});
  }
}

function explain() {
  for (const id of Object.keys(plots.figures)) {
    document.getElementById(id).textContent = 'This browser cannot draw the plot; the table below has its figures.';
  }
}

loadPlotly().then(() => { draw(); dark.addEventListener('change', draw); }, explain);
