// Tells what an event of a timeline is, on hover and by keyboard. Its text is
// the <title> that stands in the page; without this script browsers show that.
'use strict';
const told = document.getElementById('told');
const texts = new WeakMap();
let active = null;

function show(event) {
  if (active) active.classList.remove('on');
  active = event;
  told.hidden = !event;
  if (!event) return;
  event.classList.add('on');
  told.textContent = texts.get(event);
  const box = event.getBoundingClientRect();
  const wide = document.documentElement.clientWidth;
  const x = Math.max(8, Math.min(box.left, wide - told.offsetWidth - 8));
  const over = box.top - told.offsetHeight - 8;
  const y = over > 0 ? over : box.bottom + 8;
  told.style.left = x + window.scrollX + 'px';
  told.style.top = y + window.scrollY + 'px';
}

// The event of another row whose middle is nearest in time.
function nearest(events, event) {
  const x = (one) => +one.getAttribute('x') + one.getAttribute('width') / 2;
  return events.reduce((a, b) =>
    Math.abs(x(b) - x(event)) < Math.abs(x(a) - x(event)) ? b : a);
}

function beside(chart, event, key) {
  if (!event || !chart.contains(event)) return chart.querySelector('rect');
  const rows = [...chart.querySelectorAll('g')].filter((g) => g.firstChild);
  const row = event.parentNode;
  const i = rows.indexOf(row);
  const next = {
    ArrowRight: () => event.nextElementSibling,
    ArrowLeft: () => event.previousElementSibling,
    Home: () => row.firstElementChild,
    End: () => row.lastElementChild,
    ArrowDown: () => rows[i + 1] && nearest([...rows[i + 1].children], event),
    ArrowUp: () => rows[i - 1] && nearest([...rows[i - 1].children], event),
  }[key];
  return next && (next() || event);
}

for (const chart of document.querySelectorAll('.timeline')) {
  for (const title of chart.querySelectorAll('title')) {
    const event = title.parentNode;
    texts.set(event, title.textContent);
    title.remove(); // or the browser would show it too
  }
  chart.addEventListener('mouseover', (e) => {
    show(texts.has(e.target) ? e.target : null);
  });
  chart.addEventListener('mouseleave', () => show(null));
  chart.addEventListener('focus', () => {
    if (!active) show(beside(chart, null));
  });
  chart.addEventListener('blur', () => show(null));
  chart.addEventListener('keydown', (e) => {
    if (e.key === 'Escape') return show(null);
    const event = beside(chart, active, e.key);
    if (!event) return;
    e.preventDefault();
    show(event);
  });
}

// Paper shows what is folded.
let closed = [];
window.addEventListener('beforeprint', () => {
  closed = [...document.querySelectorAll('details:not([open])')];
  for (const one of closed) one.open = true;
});
window.addEventListener('afterprint', () => {
  for (const one of closed) one.open = false;
});
