// Draws each figure from the JSON beside it. The numbers are in the tables: nothing else needs this.
for (const source of document.querySelectorAll("script[data-figure]")) {
  const figure = JSON.parse(source.textContent);
  Plotly.newPlot(source.dataset.figure, figure.data, figure.layout, {
    responsive: true,
    displayModeBar: false,
  });
}
