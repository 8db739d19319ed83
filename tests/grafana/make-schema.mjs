// Makes schema.json of Grafana's own TypeScript types: `npm ci && npm run schema`.
import { readFileSync, writeFileSync } from 'node:fs';
import { createGenerator } from 'ts-json-schema-generator';

const KINDS = {
  dashboard: 'Dashboard',
  row: 'RowPanel',
  heatmap: 'HeatmapPanel',
  stat: 'StatPanel',
  'state-timeline': 'StateTimelinePanel',
  table: 'TablePanel',
  text: 'TextPanel',
  timeseries: 'TimeseriesPanel',
};

const { version } = JSON.parse(readFileSync('node_modules/@grafana/schema/package.json', 'utf8'));
const comment = `Made by make-schema.mjs of @grafana/schema ${version}, (c) Grafana Labs, Apache-2.0`;
const lines = Object.entries(KINDS).map(([kind, type]) => {
  const made = createGenerator({
    path: 'dashboard.ts',
    tsconfig: 'tsconfig.json',
    type,
    // One whole for each kind: several of Grafana's types share a name.
    expose: 'none',
    topRef: false,
    jsDoc: 'none',
  }).createSchema(type);
  return `${JSON.stringify(kind)}: ${JSON.stringify({ $comment: comment, ...made })}`;
});
writeFileSync('schema.json', `{\n${lines.join(',\n')}\n}\n`);
