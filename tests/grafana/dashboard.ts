// What of Grafana's own types the dashboards here use: the dashboard, and each kind of panel with
// its own options in place of `Record<string, unknown>`. Read by make-schema.mjs.
import type * as raw from '@grafana/raw/dashboard/x/dashboard_types.gen';
import type * as heatmap from '@grafana/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as stat from '@grafana/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as table from '@grafana/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as text from '@grafana/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen';
import type * as timeline from '@grafana/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as timeseries from '@grafana/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// The Prometheus data source's query and annotation, which are not among the types of this package.
interface PrometheusQuery {
  refId: string;
  datasource: Required<raw.DataSourceRef>;
  expr: string;
  editorMode: 'code';
  format?: 'time_series' | 'table' | 'heatmap';
  instant?: boolean;
  range?: boolean;
  legendFormat?: string;
}
// The Infinity data source's query, of JSON behind a URL.
interface InfinityQuery {
  refId: string;
  datasource: Required<raw.DataSourceRef>;
  type: 'json';
  source: 'url';
  parser: 'backend';
  format: 'table';
  url: string;
  url_options: { method: 'GET'; data: '' };
  root_selector: string;
  columns: { selector: string; text: string; type: 'string' | 'number' }[];
  filters: never[];
}
interface GrafanaAnnotation extends Omit<raw.AnnotationQuery, 'target'> {
  builtIn: 1;
}
interface PrometheusAnnotation extends Omit<raw.AnnotationQuery, 'target' | 'builtIn'> {
  expr: string;
  step?: string;
  titleFormat?: string;
  textFormat?: string;
  tagKeys?: string;
}

interface Fields<Custom> extends Omit<raw.FieldConfigSource, 'defaults'> {
  defaults: Omit<raw.FieldConfig, 'custom'> & { custom?: Custom };
}
interface Panel<Type extends string, Options, Custom = Record<string, never>, Query = PrometheusQuery>
  extends Omit<raw.Panel, 'type' | 'options' | 'fieldConfig' | 'targets'> {
  id: number;
  type: Type;
  title: string;
  gridPos: raw.GridPos;
  options: Options;
  fieldConfig?: Fields<Custom>;
  targets?: Query[];
}

export type TimeseriesPanel = Panel<'timeseries', timeseries.Options, timeseries.FieldConfig>;
export type StatPanel = Panel<'stat', stat.Options>;
export type StateTimelinePanel = Panel<'state-timeline', timeline.Options, timeline.FieldConfig>;
export type HeatmapPanel = Panel<'heatmap', heatmap.Options, heatmap.FieldConfig>;
export type TablePanel = Panel<
  'table',
  table.Options,
  Partial<table.FieldConfig>,
  PrometheusQuery | InfinityQuery
>;
export type TextPanel = Panel<'text', text.Options>;
export type RowPanel = raw.RowPanel;

// The dashboard around its panels, which are held to the types above one by one.
export interface Dashboard extends Omit<raw.Dashboard, 'panels' | 'annotations'> {
  panels: unknown[];
  annotations?: { list?: (GrafanaAnnotation | PrometheusAnnotation)[] };
}
