// The model as the page sees it: calls to the worker that runs it.

export class Model {
  constructor(manifest) {
    this.manifest = manifest;
    this.onprogress = () => {};
    this.waiting = new Map();
    this.count = 0;
    this.worker = new Worker(new URL("runner.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      if (data.progress) {
        this.onprogress(data.progress);
        return;
      }
      const { resolve, reject } = this.waiting.get(data.number);
      this.waiting.delete(data.number);
      if (data.error === undefined) resolve(data.result);
      else reject(new Error(data.error));
    };
    this.worker.onerror = (event) => {
      const error = new Error(event.message || "the worker could not be started");
      for (const { reject } of this.waiting.values()) reject(error);
      this.waiting.clear();
    };
  }

  // Loads the model; `threads` 0 leaves their number to the runtime.
  static async open(threads, onprogress) {
    const answer = await fetch(new URL("manifest.json", import.meta.url));
    if (!answer.ok) throw new Error(`manifest.json: the web server answers ${answer.status}`);
    const model = new Model(await answer.json());
    if (onprogress) model.onprogress = onprogress;
    try {
      model.facts = await model.call("open", { manifest: model.manifest, threads });
    } catch (error) {
      model.close();
      throw error;
    }
    return model;
  }

  call(call, parameters = {}) {
    this.count += 1;
    const number = this.count;
    return new Promise((resolve, reject) => {
      this.waiting.set(number, { resolve, reject });
      this.worker.postMessage({ number, call, parameters });
    });
  }

  close() {
    this.worker.terminate();
  }
}
