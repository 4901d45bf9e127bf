// On the page: a switch for each fact of a patch, and what became of the facts under the nodes that tell it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { ComfyWidgets } from "../../scripts/widgets.js";

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
const linesOf = (widget) => widget.value.split("\n").map((line) => line.trim()).filter(Boolean);

// Widgets of ours come last and are not saved, so that a workflow opens the same without this file.
function temporary(widget) {
  widget.serialize = false;
  widget.options = { ...widget.options, serialize: false };
  widget.refact = true;
  return widget;
}

function hide(widget) {
  widget.hidden = true;
  widget.computeSize = () => [0, -4];
  if (widget.element) widget.element.hidden = true;
}

async function showSwitches(node) {
  const off = widgetOf(node, "off");
  const file = widgetOf(node, "patch_name")?.value;
  if (!off || !file) return;
  const answer = await api.fetchApi(`/refact/facts?file=${encodeURIComponent(file)}`);
  const facts = answer.ok ? await answer.json() : [];
  node.widgets = node.widgets.filter((widget) => !widget.refactSwitch);
  for (const { name, title } of facts) {
    const turn = (on) => {
      const others = linesOf(off).filter((line) => line !== name);
      off.value = (on ? others : [...others, name]).join("\n");
    };
    const toggle = temporary(node.addWidget("toggle", title || name, !linesOf(off).includes(name), turn, { on: "on", off: "off" }));
    toggle.refactSwitch = true;
  }
  hide(off);
  node.setSize([Math.max(node.size[0], 420), node.computeSize()[1]]);
  node.setDirtyCanvas(true, true);
}

function showReport(node, text) {
  let report = widgetOf(node, "what_became");
  if (!report) {
    report = temporary(ComfyWidgets.STRING(node, "what_became", ["STRING", { multiline: true }], app).widget);
    if (report.inputEl) report.inputEl.readOnly = true;
    node.setSize([Math.max(node.size[0], 420), node.computeSize()[1] + (node.comfyClass === "RefactSavePatch" ? 0 : 200)]);
  }
  report.value = text;
}

app.registerExtension({
  name: "refact.nodes",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Refact")) return;
    const executed = node.onExecuted;
    node.onExecuted = function (message) {
      executed?.apply(this, arguments);
      if (message?.text) showReport(this, message.text.join("\n"));
    };
    if (node.comfyClass !== "RefactLoadPatch") return;
    const choice = widgetOf(node, "patch_name");
    const chosen = choice.callback;
    choice.callback = function () {
      chosen?.apply(this, arguments);
      widgetOf(node, "off").value = "";
      showSwitches(node);
    };
    const configured = node.onConfigure;
    node.onConfigure = function () {
      configured?.apply(this, arguments);
      showSwitches(this);
    };
    showSwitches(node);
  },
});
