// Speaks with a Hub through @huggingface/hub and prints what it saw as JSON.
// Arguments: the folder the package is installed in, the Hub's URL, and a folder of files to push:
// model.safetensors and config.json. Large files go by LFS.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";

const [installed, hubUrl, folder] = process.argv.slice(2);
const hub = createRequire(join(installed, "package.json"))("@huggingface/hub");
const owner = { hubUrl, accessToken: "hf_owner" };
const file = async (name) => ({ path: name, content: new Blob([await readFile(join(folder, name))]) });
const hex = async (blob) => Buffer.from(await blob.arrayBuffer()).toString("hex");
const refused = async (call) => {
	try {
		await call();
	} catch (error) {
		return error.statusCode ?? String(error);
	}
	return null;
};
const listed = async (options) => {
	const found = {};
	for await (const each of hub.listFiles({ ...owner, ...options, recursive: true })) {
		if (each.type === "file") found[each.path] = each.lfs?.oid ?? each.oid;
	}
	return found;
};

const told = {};
// What is there already.
const there = { ...owner, repo: "org/there" };
told.me = (await hub.whoAmI(owner)).name;
told.there = await listed(there);
told.info = await hub.fileDownloadInfo({ ...there, path: "model.safetensors" });
const whole = await hub.downloadFile({ ...there, path: "model.safetensors" });
told.size = whole.size;
told.range = await hex(whole.slice(1000, 1064));
told.header = Object.keys(await hub.parseSafetensorsMetadata(there).then((each) => each.header));
told.missing = await hub.downloadFile({ ...there, path: "nope.json" });
told.commits = [];
for await (const each of hub.listCommits(there)) told.commits.push(each.title);

// A repository of one's own.
const mine = { ...owner, repo: "org/mine" };
told.created = await hub.createRepo({ ...mine, visibility: "private" });
told.again = await refused(() => hub.createRepo(mine));
told.stranger = await refused(() => hub.modelInfo({ hubUrl, accessToken: "hf_other", name: mine.repo }));
told.wrong = await refused(() => hub.whoAmI({ hubUrl, accessToken: "hf_wrong" }));
const pushed = await hub.uploadFiles({
	...mine,
	files: [await file("model.safetensors"), await file("config.json")],
	commitTitle: "Push",
	useXet: false,
});
told.pushed = pushed.commit.oid;
told.private = (await hub.modelInfo({ ...owner, name: mine.repo })).private;
told.paths = (await hub.pathsInfo({ ...mine, paths: ["model.safetensors"] })).map((each) => each.lfs.oid);
told.late = await refused(() =>
	hub.commit({
		...mine,
		title: "Late",
		operations: [{ operation: "delete", path: "config.json" }],
		parentCommit: "0".repeat(40),
	}),
);
await hub.createBranch({ ...mine, branch: "edit" });
await hub.deleteFile({ ...mine, path: "config.json", branch: "edit" });
told.edited = Object.keys(await listed({ ...mine, revision: "edit" }));
const pull = await hub.uploadFiles({
	...mine,
	files: [{ path: "config.json", content: new Blob(["[]"]) }, await file("model.safetensors")],
	commitTitle: "Propose",
	isPullRequest: true,
	parentCommit: pushed.commit.oid,
	useXet: false,
});
told.pull = pull.pullRequestUrl;
console.log(JSON.stringify(told));
