// One machine's scan while it runs: phase, how far, how fast, what it reads, whether it is alive.

import { el, name, put } from "./dom.js";
import { count, span } from "./format.js";

const STALE_S = 30;
const PHASES = { hashes: "Listing and hashing (1 of 2)", ffprobe: "Describing videos (2 of 2)",
  "full hashes": "Hashing large files whole" };

export class ProgressLine {
  constructor(title, titled = true) {
    this.bar = el("progress", { max: 1, "aria-label": `Scan of ${title}` });
    this.phase = el("span");
    this.numbers = el("span", { class: "muted numbers" });
    this.current = el("span", { class: "muted current" });
    this.node = el("div", { class: "progress-line" },
      el("div", { class: "progress-head" }, titled ? el("strong", null, title) : null, this.phase,
        this.numbers), this.bar, this.current);
  }

  update(stats) {
    put(this.phase, PHASES[stats.phase_name] || stats.phase_name || "working");
    const [done, all] = this.howFar(stats);
    // While it still counts there is no honest percentage: the bar moves without one.
    if (all && done <= all) this.bar.value = done / all;
    else this.bar.removeAttribute("value");
    put(this.numbers, this.words(stats, done, all).filter(Boolean).join(" \u00B7 "));
    put(this.current, stats.current_path ? name(stats.current_path) : "");
  }

  howFar(stats) {
    if (stats.phase_name === "full hashes") return [stats.fully_hashed || 0, null];
    return stats.phase === 2 ? [stats.seen_videos, stats.total_videos] : [stats.seen, stats.total_all];
  }

  words(stats, done, all) {
    const quiet = stats.idle_s || 0;
    const fileErrors = stats.file_errors ?? stats.errors; // an older agent tells only all of them
    return [
      all && done <= all ? `${count(done)} of ${count(all)} files` : `${count(done)} files so far`,
      stats.data_mib ? `${stats.data_mib < 1024 ? `${Math.round(stats.data_mib)} MiB` : `${(stats.data_mib / 1024).toFixed(1)} GiB`} read` : null,
      stats.rate_files_per_s ? `${count(Math.round(stats.rate_files_per_s))} files/s` : null,
      stats.eta_s ? `${span(stats.eta_s)} left` : null,
      fileErrors ? `${count(fileErrors)} errors` : null,
      quiet > STALE_S ? `no progress for ${span(quiet)}` : null,
    ];
  }
}
