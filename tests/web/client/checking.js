// The types of the programs in the documentation.

import { readFileSync } from "node:fs";

const BLOCK = /^```(javascript|jsx|html)\n(.*?)^```$/gms;

/** The programs of a page of the how-tos. */
export function readBlocks(page) {
  const text = readFileSync(new URL(`../../../docs/howto/${page}`, import.meta.url), "utf8");
  return [...text.matchAll(BLOCK)].map(([, language, code]) => ({ page, language, code }));
}

/**
 * What is wrong with the types of files in a folder that are not on the disk, by their names.
 *
 * `ts` is TypeScript, as the package in that folder has it.
 */
export function check(ts, folder, files) {
  const options = {
    ...{ allowJs: true, checkJs: true, noEmit: true, strict: true, noImplicitAny: false },
    ...{ target: ts.ScriptTarget.ES2022, jsx: ts.JsxEmit.ReactJSX, types: [] },
    ...{ module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler },
    ...{ lib: ["lib.es2023.d.ts", "lib.dom.d.ts", "lib.dom.iterable.d.ts"] },
  };
  const host = ts.createCompilerHost(options);
  const { fileExists, getSourceFile } = host;
  host.fileExists = (name) => files.has(name) || fileExists(name);
  host.getSourceFile = (name, ...more) =>
    files.has(name)
      ? ts.createSourceFile(name, files.get(name), ts.ScriptTarget.ES2022, true)
      : getSourceFile(name, ...more);
  const program = ts.createProgram([...files.keys()], options, host);
  const found = [...files.keys()].flatMap((name) => {
    const file = program.getSourceFile(name);
    return [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)];
  });
  return found.map(({ file, start, messageText }) => {
    const line = file.text.slice(0, start).split("\n").length;
    const text = ts.flattenDiagnosticMessageText(messageText, "\n");
    return `${file.fileName.slice(folder.length)}:${line} ${text}`;
  });
}
