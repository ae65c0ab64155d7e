// Machines that hash with different functions cannot be compared with each other: said where it matters.

import { call } from "./api.js";
import { openDialog } from "./dialog.js";
import { button, el } from "./dom.js";
import { plural } from "./format.js";
import { toast } from "./toast.js";

const BEST_FIRST = ["blake3", "sha256"];

// Map of function → machines with files, where there is more than one function; else null.
function hashMix(agents) {
  const mix = new Map();
  for (const agent of agents) {
    if (!agent.hash_algo || !(agent.files || agent.missing)) continue;
    mix.set(agent.hash_algo, [...(mix.get(agent.hash_algo) || []), agent]);
  }
  return mix.size > 1 ? mix : null;
}

function commonFunction(agents) {
  return BEST_FIRST.find((algo) => agents.every((agent) => (agent.hash_algos || []).includes(algo)));
}

async function useEverywhere(algo, agents) {
  await call("settings", { set: { hash_algo: algo } });
  for (const agent of agents.filter((one) => (one.settings || {}).hash_algo)) {
    await call("agents/set", { agent: agent.id, settings: { hash_algo: null } });
  }
  toast(`From the next scan on, every machine uses ${algo}`, "good");
}

function askToUse(algo, agents) {
  const others = agents.filter((agent) => agent.hash_algo !== algo);
  openDialog(`Use ${algo} on every machine?`, [
    el("p", null, `${others.map((agent) => agent.name).join(", ")}: ${plural(others.length, "machine reads its", "machines read their")} files once more at the next scan.`),
    el("p", { class: "muted" }, "The other machines go on as they are. Nothing leaves the catalogue.")], [{
    label: `Use ${algo}`, kind: "primary", run: () => useEverywhere(algo, agents),
  }]);
}

// A notice for the top of a page, or null where all is well.
export function hashMixNotice(agents) {
  const mix = hashMix(agents || []);
  if (!mix) return null;
  const told = [...mix].map(([algo, some]) => `${algo} on ${some.map((agent) => agent.name).join(", ")}`);
  const involved = [...mix.values()].flat();
  const algo = commonFunction(involved);
  const lacking = involved.filter((agent) => !(agent.hash_algos || []).includes("blake3"));
  return el("div", { class: "notice warn", role: "note" },
    el("p", null, el("strong", null, "Copies between some machines cannot be found. "),
      `They hash with different functions: ${told.join("; ")}.`),
    el("p", { class: "row" }, lacking.length ? `Install blake3 on ${lacking.map((agent) => agent.name).join(", ")} (pip install blake3)${algo ? ", or" : "."}` : null,
      algo ? button(`use ${algo} everywhere`, () => askToUse(algo, involved), { class: "small" }) : null));
}
