'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const PER_PAGE = 25;
  const byId = (id) => document.getElementById(id);

  // Elements are built from text alone, so that no name can become markup.
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, '');
      else if (value !== false && value != null) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child != null));
    return made;
  }
  const percent = (x) => (x == null ? '–' : (100 * x).toFixed(2));
  const whole = (x) => (x == null ? '–' : x.toLocaleString('en'));
  const signed = (x) => (x == null ? '–' :
    `${x < 0 ? '−' : x > 0 ? '+' : ''}${Math.abs(100 * x).toFixed(2)}`);
  const minus = (a, b) => (a == null || b == null ? null : a - b);
  const difference = (x) =>
    element('td', { class: x == null || !x ? '' : x > 0 ? 'better' : 'worse' }, signed(x));
  const row = (kind, cells) => element('tr', {}, ...cells.map((cell) => element(kind, {}, cell)));

  function scores() {
    const others = data.others;
    const titles = ['score (%)', others.length ? `A: ${data.run}` : 'value'];
    others.forEach((other, i) => titles.push(`${letter(i)}: ${other.run}`, `A − ${letter(i)}`));
    const lines = Object.entries(data.scores).map(([name, value]) => {
      const line = row('td', [name, percent(value)]);
      for (const other of others) {
        line.append(element('td', {}, percent(other.scores[name])));
        line.append(difference(minus(value, other.scores[name])));
      }
      return line;
    });
    byId('score-table').append(
      element('thead', {}, row('th', titles)), element('tbody', {}, ...lines));
    others.forEach((other, i) => {
      if (!other.paired) return;
      const { number, mean, error, better, worse } = other.paired;
      byId('paired').append(element('p', {},
        `${data.image_scores.name} of the same ${number} ${data.unit}s, A − ${letter(i)}: ` +
        `${signed(mean)} ± ${percent(1.96 * error)} (95 %), ` +
        `better on ${better}, worse on ${worse}.`));
    });
  }
  const letter = (i) => String.fromCharCode(66 + i);

  // Classes: sorted, filtered, a page at a time

  const state = { column: 'pixels', descending: true, page: 0 };
  function classColumns() {
    const hidden = new Set(['name', 'pixels', 'images']);
    const names = Object.keys(data.classes[0] || {}).filter((name) => !hidden.has(name));
    const columns = [{ key: 'name', title: 'class', value: (i) => data.classes[i].name, left: true }];
    const figure = (key, show) => columns.push(
      { key, title: key, value: (i) => data.classes[i][key], show });
    for (const name of names) {
      figure(name, percent);
      data.others.forEach((other, o) => {
        if (!other.classes.length || !(name in other.classes[0])) return;
        columns.push({
          key: `${name} ${letter(o)}`, title: `${name} ${letter(o)}`,
          value: (i) => other.classes[i][name], show: percent });
        columns.push({
          key: `${name} A − ${letter(o)}`, title: `A − ${letter(o)}`, difference: true,
          value: (i) => minus(data.classes[i][name], other.classes[i][name]) });
      });
    }
    if (data.classes.length && 'pixels' in data.classes[0]) figure('pixels', whole);
    figure('images', whole);
    return columns;
  }
  const columns = classColumns();

  function classes() {
    const filter = byId('class-filter').value.toLowerCase(), seen = byId('class-seen').checked;
    const chosen = columns.find(({ key }) => key === state.column) || columns[0];
    const places = data.classes.keys().filter((i) =>
      data.classes[i].name.toLowerCase().includes(filter) && (!seen || data.classes[i].images))
      .map((i) => [i, chosen.value(i)]).toArray();
    const sign = state.descending ? -1 : 1;
    places.sort(([i, a], [j, b]) => {
      if (a == null || b == null) return (a == null) - (b == null) || i - j;  // missing ones last
      return sign * (typeof a === 'string' ? a.localeCompare(b) : a - b) || i - j;
    });
    const pages = Math.max(1, Math.ceil(places.length / PER_PAGE));
    state.page = Math.min(state.page, pages - 1);
    const first = state.page * PER_PAGE, shown = places.slice(first, first + PER_PAGE);
    byId('class-table').tBodies[0].replaceChildren(...shown.map(([i]) =>
      element('tr', {}, ...columns.map((column) => {
        const value = column.value(i);
        if (column.difference) return difference(value);
        return element('td', column.left ? { title: value } : {},
          column.show ? column.show(value) : value);
      }))));
    byId('class-count').textContent = `${places.length} of ${data.classes.length} classes`;
    byId('class-page').textContent = `page ${state.page + 1} of ${pages}`;
    byId('class-previous').disabled = state.page === 0;
    byId('class-next').disabled = state.page === pages - 1;
    for (const cell of byId('class-table').tHead.rows[0].cells) {
      const sorted = cell.dataset.key === state.column;
      cell.setAttribute('aria-sort',
        sorted ? (state.descending ? 'descending' : 'ascending') : 'none');
      cell.firstChild.textContent =
        cell.dataset.title + (sorted ? (state.descending ? ' ↓' : ' ↑') : '');
    }
  }
  function classTable() {
    byId('class-table').tHead.append(element('tr', {}, ...columns.map(({ key, title, left }) =>
      element('th', { 'data-key': key, 'data-title': title, class: left ? 'left' : '' },
        element('button', {
          type: 'button',
          onclick: () => {
            state.descending = state.column === key ? !state.descending : !left;
            Object.assign(state, { column: key, page: 0 });
            classes();
          },
        })))));
    const first = () => { state.page = 0; classes(); };
    byId('class-filter').addEventListener('input', first);
    byId('class-seen').addEventListener('change', first);
    byId('class-previous').addEventListener('click', () => { state.page -= 1; classes(); });
    byId('class-next').addEventListener('click', () => { state.page += 1; classes(); });
    classes();
  }

  // Charts

  function draw(id, traces, layout) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = { gridcolor: color('rule'), zerolinecolor: color('rule'), automargin: true };
    const { xaxis, yaxis, ...rest } = layout(color);
    Plotly.react(id, traces(color), {
      paper_bgcolor: color('paper'), plot_bgcolor: color('paper'),
      font: { color: color('ink'), family: 'system-ui, sans-serif', size: 13 },
      margin: { l: 60, r: 20, t: 30, b: 50 }, height: 380,
      legend: { orientation: 'h', y: 1.12 },
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
    }, { displaylogo: false, responsive: true, modeBarButtonsToRemove: ['select2d', 'lasso2d'] });
  }

  function kappaChart() {
    const { curves, safe, num_selected: chosen } = data;
    const ticks = [1, 10, 100, 1000].flatMap((x) => [x, 2 * x, 5 * x]);
    const line = (name, values, color, dash) => ({
      name, x: values.map((_, i) => i + 1), y: values.map((x) => 100 * x), mode: 'lines',
      line: { color, dash, width: 2.5 }, hovertemplate: 'κ = %{x}: %{y:.3f} %' });
    draw('kappa-chart', (color) => [
      line('Pixels kept (recall@κ)', curves.pixel_recall, color('accent')),
      line('Categories kept (recall@κ)', curves.category_recall, color('third'), 'dash'),
      line('Categories, the κ commonest alone', curves.by_frequency, color('faint'), 'dash'),
      line('Score at κ: right pixels', curves.right_pixels, color('second'), 'dot'),
      { name: `Smallest safe κ = ${safe}`, x: [safe], y: [100 * curves.pixel_recall[safe - 1]],
        mode: 'markers', marker: { size: 13, symbol: 'diamond', color: color('ink') } },
    ], (color) => ({
      xaxis: { title: { text: 'κ' }, type: 'log', tickvals: ticks, ticktext: ticks.map(String) },
      yaxis: { title: { text: '%' }, rangemode: 'tozero' },
      shapes: [{
        type: 'line', x0: Math.min(chosen, data.classes.length), yref: 'paper', y0: 0, y1: 1,
        x1: Math.min(chosen, data.classes.length), line: { color: color('faint'), dash: 'dash' } }],
      annotations: [{
        x: Math.log10(Math.min(chosen, data.classes.length)), y: 0.04, yref: 'paper',
        text: `this run: κ = ${chosen}`, showarrow: false, xanchor: 'right', xshift: -6 }],
    }));
  }
  function kappa() {
    const { curves, safe, num_selected: chosen } = data;
    const kept = curves.pixel_recall[Math.min(chosen, data.classes.length) - 1];
    byId('kappa-text').textContent =
      `The smallest safe κ is ${safe}: it keeps 99.9 % of the labeled pixels. ` +
      `This run keeps ${chosen} categories and ${(100 * kept).toFixed(3)} % of the pixels.`;
    if (!data.costs) return;
    const titles = ['κ', 'pixels kept (%)', 'categories kept (%)', 'milliseconds', 'MiB'];
    byId('cost-table').append(
      element('caption', { class: 'hint' }, `Predicting one input, on ${data.device}`),
      element('thead', {}, row('th', titles)),
      element('tbody', {}, ...data.costs.map((x) => row('td', [
        String(x.num_selected), percent(x.pixel_recall), percent(x.category_recall),
        x.milliseconds.toFixed(1), (x.temporary_bytes / 2 ** 20).toFixed(1)]))));
  }

  function calibrationChart() {
    const { confidence, present, number } = data.calibration;
    draw('calibration-chart', (color) => [
      { name: 'right', x: [0, 1], y: [0, 1], mode: 'lines', hoverinfo: 'skip',
        line: { color: color('faint'), dash: 'dash' } },
      { name: 'this run', x: confidence, y: present, customdata: number, mode: 'lines+markers',
        line: { color: color('accent'), width: 2.5 }, marker: { size: 9 },
        hovertemplate: 'confidence %{x:.3f}: %{y:.3f} present, %{customdata} pairs<extra></extra>' },
    ], () => ({
      xaxis: { title: { text: 'confidence' }, range: [-0.02, 1.02] },
      yaxis: { title: { text: 'share that is present' }, range: [-0.02, 1.05] }, height: 420,
    }));
  }

  const short = (name) => (name.length > 22 ? `${name.slice(0, 21)}…` : name);
  function confusionChart() {
    const { names, shares } = data.confusion;
    const ticks = { tickvals: names.map((_, i) => i), ticktext: names.map(escaped) };
    const labels = names.map((name) => names.map((other) => [escaped(name), escaped(other)]));
    draw('confusion-chart', (color) => [{
      type: 'heatmap', z: shares.map((line) => line.map((x) => (x == null ? null : 100 * x))),
      customdata: labels, colorscale: 'Cividis', zmin: 0, zmax: 100, hoverongaps: false,
      xgap: 1, ygap: 1, colorbar: { title: { text: '% of true' }, thickness: 12 },
      hovertemplate: '%{customdata[0]}<br>as %{customdata[1]}: %{z:.2f} %<extra></extra>',
    }], () => ({
      xaxis: { title: { text: 'predicted' }, tickangle: -55, showgrid: false, ...ticks },
      yaxis: { title: { text: 'true' }, autorange: 'reversed', showgrid: false, ...ticks },
      height: Math.max(320, 170 + 17 * names.length),
      font: { size: 11, color: getComputedStyle(document.body).color },
    }));
  }
  // Plotly reads some markup in texts.
  const escaped = (name) =>
    short(name).replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

  function confusion() {
    const { pairs, labeled_pixels: labeled, wrong_pixels: wrong } = data.confusion;
    byId('confusion-text').textContent = labeled ?
      `${percent(wrong / labeled)} % of the labeled pixels are wrong.` : 'No pixel is labeled.';
    const lines = pairs.map((pair) => {
      const line = row('td', [pair.true, pair.predicted, percent(pair.pixels / wrong)]);
      line.cells[1].className = 'left';
      line.append(element('td', { class: 'left' }, ...pair.examples.filter((place) =>
        data.items[place]).map((place, i) => element('button', {
          type: 'button', title: data.items[place].name,
          onclick: () => { open('examples', place); byId('viewer').scrollIntoView(); },
        }, `${i + 1}`))));
      return line;
    });
    const titles = ['true', 'predicted', '% of all wrong', 'examples'];
    const head = row('th', titles);
    head.cells[1].className = head.cells[3].className = 'left';
    byId('pair-table').append(element('thead', {}, head),
      element('tbody', {}, ...lines));
  }

  // Gallery

  const PARTS = ['worst', 'median', 'best', 'examples'];
  const shown = { part: 'worst', item: null, frame: 0, timer: null };
  const lists = Object.fromEntries(PARTS.map((part) => [part, (part === 'examples' ?
    [...new Set(data.confusion.pairs.flatMap((pair) => pair.examples))] :
    data.gallery[part]).filter((place) => data.items[place])]));

  function openPart(part) {
    shown.part = part;
    for (const button of byId('gallery-parts').children) {
      button.setAttribute('aria-pressed', button.dataset.part === part);
    }
    byId('thumbnails').replaceChildren(...lists[part].map((place) => {
      const item = data.items[place];
      return element('button', {
        type: 'button', 'data-place': place, title: item.name, onclick: () => open(part, place),
      }, element('img', { src: item.frames[0].image, alt: '' }),
      element('span', {}, item.score == null ? 'not scored' : percent(item.score)));
    }));
  }
  function open(part, place) {
    if (part !== shown.part || !byId('thumbnails').children.length) openPart(part);
    stop();
    shown.item = place;
    shown.frame = 0;
    const item = data.items[place];
    byId('viewer').hidden = false;
    byId('item-name').textContent = item.name;
    byId('item-score').textContent = `${data.image_scores.name} ${percent(item.score)}`;
    for (const button of byId('thumbnails').children) {
      button.setAttribute('aria-pressed', Number(button.dataset.place) === place);
    }
    const titles = { image: 'Image', truth: 'Truth', prediction: 'Prediction', errors: 'Errors' };
    byId('panels').replaceChildren(...Object.entries(titles).map(([name, title]) =>
      element('figure', {}, element('figcaption', {}, title),
        element('div', { class: 'stack' },
          element('img', { class: 'under', alt: `${title} of ${item.name}` }),
          name === 'image' ? null :
            element('img', { class: 'over', 'data-layer': name, alt: '' })))));
    byId('class-legend').replaceChildren(...item.classes.map((found) => {
      const where = found.true ? (found.predicted ? '' : ' (only in truth)') : ' (only predicted)';
      const chip = element('span', { class: 'chip' });
      chip.style.background = found.color;
      return element('span', {}, chip, found.name + where);
    }));
    byId('player').hidden = item.frames.length < 2;
    byId('frame').max = item.frames.length - 1;
    ranked(item);
    tracks(item);
    showFrame(0);
    setOpacity();
  }
  function ranked(item) {
    const lines = item.ranked.map(({ name, score, present }, i) => {
      const bar = element('span', { class: 'bar' });
      bar.style.width = `${Math.round(120 * score)}px`;
      return row('td', [`${i + 1}. ${name}`, bar, score.toFixed(2), present ? '✓ present' : 'absent']);
    });
    for (const line of lines) line.cells[1].className = line.cells[3].className = 'left';
    byId('ranked').replaceChildren(...(lines.length ? [
      element('h3', {}, 'Ranked categories'), element('table', {}, element('tbody', {}, ...lines)),
      element('p', { id: 'missed', class: item.missed.length ? 'worse' : 'hint' },
        item.missed.length ? `✗ Missed, not selected: ${item.missed.join(', ')}` :
          'All categories in the truth were selected.')] : []));
  }
  function tracks(item) {
    const lines = item.tracks.map((track) => {
      const chip = element('span', { class: 'chip' });
      chip.style.background = track.color;
      const frames = element('span', { class: 'frames' }, ...track.frames.map((visible) => {
        const cell = element('span');
        if (visible) cell.style.background = track.color;
        return cell;
      }));
      const name = element('span', {}, chip, `${track.name} ${track.id}`);
      return row('td', [name, track.score.toFixed(2), frames]);
    });
    byId('tracks').replaceChildren(...(lines.length ? [element('h3', {}, 'Tracks'),
      element('table', {}, element('tbody', {}, ...lines))] : []));
  }
  function showFrame(number) {
    const item = data.items[shown.item], frame = item.frames[number];
    shown.frame = number;
    for (const image of byId('panels').querySelectorAll('.under')) image.src = frame.image;
    for (const image of byId('panels').querySelectorAll('.over')) {
      image.src = frame[image.dataset.layer];
    }
    byId('frame').value = number;
    byId('frame-number').textContent = `${number + 1} of ${item.frames.length}`;
    for (const line of byId('tracks').querySelectorAll('.frames')) {
      [...line.children].forEach((cell, i) => cell.classList.toggle('now', i === number));
    }
  }
  function setOpacity() {
    for (const image of byId('panels').querySelectorAll('.over')) {
      image.style.opacity = byId('opacity').value / 100;
    }
  }
  function step(by) {
    const list = lists[shown.part];
    if (!list.length) return;
    const place = list.indexOf(shown.item) + by;
    open(shown.part, list[(place + list.length) % list.length]);
  }
  function stop() {
    clearInterval(shown.timer);
    shown.timer = null;
    byId('play').setAttribute('aria-pressed', false);
    byId('play').textContent = 'Play';
  }
  function play() {
    if (shown.timer) return stop();
    const length = data.items[shown.item].frames.length;
    shown.timer = setInterval(() => showFrame((shown.frame + 1) % length), 150);
    byId('play').setAttribute('aria-pressed', true);
    byId('play').textContent = 'Pause';
  }
  function gallery() {
    const titles = {
      worst: 'Worst', median: 'Median', best: 'Best', examples: 'Examples of confusions' };
    byId('gallery-parts').append(...PARTS.filter((part) => lists[part].length).map((part) =>
      element('button', {
        type: 'button', 'data-part': part,
        onclick: () => { openPart(part); open(part, lists[part][0]); },
      }, titles[part])));
    const first = PARTS.find((part) => lists[part].length);
    if (!first) {
      byId('thumbnails').textContent = `No ${data.unit} can be shown.`;
      return;
    }
    open(first, lists[first][0]);
    byId('item-previous').addEventListener('click', () => step(-1));
    byId('item-next').addEventListener('click', () => step(1));
    byId('opacity').addEventListener('input', setOpacity);
    byId('frame').addEventListener('input', () => { stop(); showFrame(Number(byId('frame').value)); });
    byId('play').addEventListener('click', play);
    byId('gallery').addEventListener('keydown', (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by && event.target.type !== 'range') {
        event.preventDefault();
        step(by);
      } else if (event.key === ' ' && event.target.tagName !== 'BUTTON' && !byId('player').hidden) {
        event.preventDefault();
        play();
      }
    });
  }

  // Plotly takes longest to start: it waits until the page is there and a chart comes into view.

  const charts = new Map();
  if (data.curves) charts.set(byId('kappa-chart'), kappaChart);
  if (data.confusion.names.length) charts.set(byId('confusion-chart'), confusionChart);
  if (data.calibration) charts.set(byId('calibration-chart'), calibrationChart);
  const drawn = new Set();
  function drawChart(place) {
    if (!window.Plotly) {
      document.head.append(element('script', {}, byId('plotly').textContent));
    }
    drawn.add(place);
    charts.get(place)();
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      setTimeout(() => drawChart(target));
    }
  }, { rootMargin: '300px' });
  scores();
  if (data.curves) kappa();
  classTable();
  confusion();
  gallery();
  addEventListener('load', () => setTimeout(() => [...charts.keys()].forEach((place) =>
    watcher.observe(place))));
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () =>
    drawn.forEach(drawChart));
})();
