// Draws the frames of `props.value`, see `demo.Demo.view`; runs when the page has loaded.
const find = (name) => element.querySelector(`.${name}`);
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
let value, number, places, pointed, timer, opacity = 60;

function create(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function title({ name, score, was }) {
  return name + (score == null ? '' : ` · ${score.toFixed(2)}`) + (was ? ` (was ${was})` : '');
}

function loaded(url) {
  const image = new Image();
  image.src = url;
  return image.decode().then(() => image);
}

async function show(place) {
  number = place;
  const frame = value.frames[place];
  const [image, map] = await Promise.all([loaded(frame.image), loaded(frame.map)]);
  if (frame !== value.frames[number]) return; // another one was asked for meanwhile
  const { naturalWidth: width, naturalHeight: height } = map;
  const board = new OffscreenCanvas(width, height).getContext('2d');
  board.drawImage(map, 0, 0);
  const { data } = board.getImageData(0, 0, width, height);
  places = new Uint32Array(width * height);
  for (let i = 0; i < places.length; i++) {
    places[i] = data[4 * i] | data[4 * i + 1] << 8 | data[4 * i + 2] << 16;
  }
  const shown = element.querySelector('.stack img');
  shown.src = image.src;
  find('stack').style.width = `min(100%, ${70 * width / height}vh)`;
  Object.assign(element.querySelector('canvas'), { width, height });
  pointed = null;
  find('name').hidden = true;
  paint();
  list(frame);
  find('number').textContent = `${place + 1} of ${value.frames.length}`;
  find('frame').value = place;
}

// Outlined regions; the one under the pointer stands out; what changed is striped.
function paint() {
  const canvas = element.querySelector('canvas'), { width, height } = canvas;
  const { regions } = value.frames[number];
  const colors = regions.map(({ color }) =>
    color && [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)));
  const picture = new ImageData(width, height);
  for (let i = 0; i < places.length; i++) {
    const place = places[i], x = i % width, y = (i - x) / width;
    const edge = x && places[i - 1] !== place || y && places[i - width] !== place;
    const striped = regions[place].was && (x + y) % 12 < 4;
    const color = edge || striped ? [255, 255, 255] : colors[place];
    if (!color) continue;
    picture.data.set(color, 4 * i);
    picture.data[4 * i + 3] = pointed === null || pointed === place ? 255 : 150;
  }
  canvas.getContext('2d').putImageData(picture, 0, 0);
  canvas.style.opacity = opacity / 100;
}

function point(place) {
  if (place === pointed) return;
  pointed = place;
  paint();
}

function list({ regions, ranked }) {
  const order = regions.map((region, i) => [region, i]).filter(([{ color, was }]) => color || was);
  order.sort(([a], [b]) => b.share - a.share);
  find('regions').replaceChildren(...order.map(([region, i]) => {
    const chip = create('span', 'region'), color = create('i', '');
    color.style.background = region.color ?? 'transparent';
    chip.append(color, `${title(region)} `, create('small', '', percent(region.share)));
    chip.onmouseenter = () => point(i);
    chip.onmouseleave = () => point(null);
    return chip;
  }));
  find('categories').hidden = !ranked.length;
  find('ranked').replaceChildren(...ranked.map(([name, confidence], i) => {
    const line = create('li', value.kept && i >= value.kept ? 'dropped' : 'kept');
    const bar = create('span', 'bar'), label = create('span', 'label', name);
    label.title = name;
    bar.style.width = `${100 * confidence}%`;
    line.append(create('small', '', `${i + 1}.`), label, bar, percent(confidence));
    return line;
  }));
}

function stop() {
  clearInterval(timer);
  timer = null;
  find('play').textContent = 'Play';
}

function open() {
  stop();
  ({ value } = props);
  const frames = value?.frames?.length;
  find('hint').hidden = Boolean(frames);
  find('hint').textContent = value?.error ?? find('hint').dataset.text;
  for (const part of ['stage', 'controls', 'lists']) find(part).hidden = !frames;
  if (!frames) return;
  element.querySelector('.stack img').alt = value.name;
  find('player').hidden = frames < 2;
  find('frame').max = frames - 1;
  const all = value.frames.flatMap(({ regions }) => regions.filter(({ was }) => was));
  const changed = all.reduce((sum, { share }) => sum + share, 0) / frames;
  find('about').textContent = [
    value.kept && value.kept < value.frames[0].ranked.length ?
      `${percent(changed)} of the pixels change` : '',
    value.left_out ? `${value.left_out} more frames left out` : '',
    `forward pass ${value.seconds.toPrecision(2)} s${frames > 1 ? ' a frame' : ''}`,
  ].filter(Boolean).join(' · ');
  show(Math.min(number ?? 0, frames - 1));
}

function listen() {
  const canvas = element.querySelector('canvas');
  canvas.onmousemove = (event) => {
    const box = canvas.getBoundingClientRect(), name = find('name');
    const x = Math.floor((event.clientX - box.left) / box.width * canvas.width);
    const y = Math.floor((event.clientY - box.top) / box.height * canvas.height);
    const place = places[y * canvas.width + x];
    if (place === undefined) return;
    point(place);
    const stage = find('stage').getBoundingClientRect();
    name.textContent = title(value.frames[number].regions[place]);
    name.hidden = false;
    name.style.top = `${event.clientY - stage.top + 14}px`;
    name.style.left = `${Math.min(event.clientX - stage.left + 14,
      stage.width - name.offsetWidth)}px`;
  };
  canvas.onmouseleave = () => {
    find('name').hidden = true;
    point(null);
  };
  find('opacity').oninput = (event) => {
    opacity = event.target.value;
    canvas.style.opacity = opacity / 100;
  };
  find('frame').oninput = (event) => {
    stop();
    show(Number(event.target.value));
  };
  find('play').onclick = () => {
    if (timer) return stop();
    find('play').textContent = 'Pause';
    timer = setInterval(() => show((number + 1) % value.frames.length), 1000 / value.rate);
  };
}

listen();
open();
watch('value', open);
