import type { components } from "./api.js";

/** A problem document (RFC 9457) of the gateway. */
export type Problem = components["schemas"]["Problem"];

/** What the gateway refused, or why it could not be asked; `status` is 0 where nobody answered. */
export class BookserveError extends Error {
  readonly status: number;
  readonly type: Problem["type"] | "";
  readonly problem: Partial<Problem>;
}

export interface Options {
  /** Sent as `Authorization: Bearer`. */
  key?: string;
  /** Milliseconds for a call with all its retries. */
  timeout?: number;
  /** How often a call is repeated that nobody answered, or that was answered 429 or 503. */
  retries?: number;
  fetch?: typeof globalThis.fetch;
}

export interface CallOptions {
  version?: number;
  /** Instead of a version. */
  label?: string;
  signal?: AbortSignal;
  timeout?: number;
}

/** The answer to one request; `Prediction` is what the model's task gives, see /openapi.json of the gateway. */
export interface Answer<Prediction = Record<string, unknown>> {
  model: string;
  version: number;
  predictions: Prediction[];
}

/** The answer to one of many bodies; `line` counts from 1. */
export type Line<Prediction = Record<string, unknown>> =
  | ({ line: number; problem?: undefined } & Answer<Prediction>)
  | { line: number; problem: Problem };

export interface Model {
  name: string;
  ready: boolean;
  version: number | null;
  reason: string | null;
  task: string | null;
  [fact: string]: unknown;
}

export interface State {
  ready: boolean;
  version: number | null;
  [fact: string]: unknown;
}

export class Client {
  constructor(url?: string, options?: Options);
  models(options?: CallOptions): Promise<Model[]>;
  model(name: string, options?: CallOptions): Promise<Model>;
  predict<Prediction = Record<string, unknown>>(
    name: string,
    body: Record<string, unknown>,
    options?: CallOptions,
  ): Promise<Answer<Prediction>>;
  pictures<Prediction = Record<string, unknown>>(
    name: string,
    files: Iterable<Blob | ArrayBuffer | Uint8Array>,
    options?: CallOptions,
  ): Promise<Answer<Prediction>>;
  state(name: string, options?: CallOptions): Promise<State>;
  /** Of a molecule (`{smiles}`) or a board (`{board}`); `kept` are inputs that are the same in all. */
  explain<Prediction = Record<string, unknown>>(
    name: string,
    body: Record<string, unknown>,
    options?: CallOptions,
  ): Promise<Answer<Prediction> & { without: Record<string, unknown>[]; kept?: string[] }>;
  /** A PNG; `given`: of what the model is given. */
  preview(name: string, file: Blob | ArrayBuffer | Uint8Array, options?: CallOptions & { given?: boolean }): Promise<Blob>;
  generate<Prediction = Record<string, unknown>>(
    name: string,
    body: Record<string, unknown>,
    options?: CallOptions,
  ): Promise<Answer<Prediction> & { seed: number }>;
  lines<Prediction = Record<string, unknown>>(
    name: string,
    bodies: Iterable<Record<string, unknown>> | AsyncIterable<Record<string, unknown>>,
    options?: CallOptions,
  ): AsyncGenerator<Line<Prediction>, void, void>;
}
