// What users of Google's Node clients do, with the clients' defaults. `node node_clients.js storage|pubsub|firestore`:
// exits with 0 when every assertion holds. Only the address variables of an emulator are set, as by `goblin env`.
"use strict";
const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const { pipeline } = require("node:stream/promises");

const projectId = process.env.GOOGLE_CLOUD_PROJECT;
const text = "hello ".repeat(1000);
const big = Buffer.alloc(3 * 1024 * 1024 + 17, "xyz");

async function read(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks);
}

async function storage() {
  const { Storage } = require("@google-cloud/storage");
  const client = new Storage({ projectId, keyFilename: process.env.KEY_FILE });
  const bucket = client.bucket(`node-${Date.now()}`);
  await bucket.create();
  const source = path.join(process.env.FOLDER, "text.txt");
  fs.writeFileSync(source, text);

  const uploads = {
    "default": {},
    "simple": { resumable: false, metadata: { metadata: { k: "v" } } },
    "packed": { gzip: true },
    "packed-simple": { gzip: true, resumable: false },
  };
  for (const [name, options] of Object.entries(uploads)) {
    const destination = `d/${name} é.txt`;
    await bucket.upload(source, { destination, ...options });
    const file = bucket.file(destination);
    assert.equal((await file.download())[0].toString(), text, name);
    const [metadata] = await file.getMetadata();
    assert.equal(metadata.contentType, "text/plain");
    assert.equal(metadata.contentEncoding, options.gzip ? "gzip" : undefined);
    assert.equal(Number(metadata.size) < 6000, Boolean(options.gzip));
  }
  for (const options of [{}, { chunkSize: 512 * 1024 }, { resumable: false }]) {
    await bucket.file("big").save(big, options);
    assert.ok((await read(bucket.file("big").createReadStream())).equals(big));
  }
  await pipeline(fs.createReadStream(source), bucket.file("stream").createWriteStream({ gzip: true }));
  assert.equal((await read(bucket.file("stream").createReadStream())).toString(), text);
  assert.equal((await read(bucket.file("big").createReadStream({ start: 1, end: 3 }))).toString(), "yzx");
  await bucket.file("empty").save("");

  const simple = bucket.file("d/simple é.txt");
  const [changed] = await simple.setMetadata({ metadata: { a: "b", k: null } });
  assert.deepEqual(changed.metadata, { a: "b" });
  await simple.copy(bucket.file("copied"));
  await bucket.file("copied").move("moved");
  assert.deepEqual(await bucket.file("copied").exists(), [false]);
  await bucket.combine(["moved", "moved"], "both");
  assert.equal((await bucket.file("both").download())[0].length, 12000);
  const [files, , listed] = await bucket.getFiles({ delimiter: "/", autoPaginate: false });
  assert.deepEqual(files.map((file) => file.name), ["big", "both", "empty", "moved", "stream"]);
  assert.deepEqual(listed.prefixes, ["d/"]);
  const guarded = bucket.file("big", { preconditionOpts: { ifGenerationMatch: 0 } });
  await assert.rejects(guarded.save("x", { resumable: false }), { code: 412 });

  const soon = { version: "v4", expires: Date.now() + 60_000 };
  const [put] = await bucket.file("signed").getSignedUrl({ ...soon, action: "write" });
  assert.equal((await fetch(put, { method: "PUT", body: "abc" })).status, 200);
  const [get] = await bucket.file("signed").getSignedUrl({ ...soon, action: "read" });
  assert.equal(await (await fetch(get)).text(), "abc");

  const began = Date.now();
  await assert.rejects(bucket.iam.getPolicy(), /is not supported by localcloud/);
  assert.ok(Date.now() - began < 5000, "a refusal is not repeated");
  assert.ok((await client.getBuckets())[0].some((one) => one.name === bucket.name));
  await bucket.deleteFiles();
  await bucket.delete();
}

async function pubsub() {
  const { PubSub } = require("@google-cloud/pubsub");
  const client = new PubSub({ projectId });
  const [topic] = await client.createTopic("orders");
  const options = {
    plain: {},
    filtered: { enableMessageOrdering: true, filter: 'attributes.a = "b"' },
    once: { enableExactlyOnceDelivery: true },
  };
  for (const [name, more] of Object.entries(options)) await topic.createSubscription(name, more);
  await topic.publishMessage({ data: Buffer.from("one") });
  const ordered = client.topic("orders", { messageOrdering: true });
  for (const data of ["two", "three"]) {
    await ordered.publishMessage({ data: Buffer.from(data), orderingKey: "k", attributes: { a: "b" } });
  }
  const receive = (name, count, handle) =>
    new Promise((resolve, reject) => {
      const subscription = client.subscription(name);
      const seen = [];
      subscription.on("error", reject);
      subscription.on("message", (message) => {
        seen.push(message.data.toString());
        Promise.resolve(handle(message)).then(
          () => seen.length === count && subscription.close().then(() => resolve(seen)), reject);
      });
    });
  assert.deepEqual((await receive("plain", 3, (message) => message.ack())).sort(), ["one", "three", "two"]);
  assert.deepEqual(await receive("filtered", 2, (message) => message.ack()), ["two", "three"]);
  assert.equal((await receive("once", 3, (message) => message.ackWithResponse())).length, 3);
  await topic.publishMessage({ json: { again: true } });
  let first = true;
  const again = await receive("plain", 2, (message) => {
    if (first) message.nack();
    else message.ack();
    first = false;
  });
  assert.deepEqual(again, ['{"again":true}', '{"again":true}']);
  assert.equal((await client.getSubscriptions())[0].length, 3);
  await assert.rejects(client.topic("missing").publishMessage({ data: Buffer.from("x") }), { code: 5 });
  await topic.delete();
  await client.close();
}

async function firestore() {
  const { Firestore, FieldValue, Filter, Timestamp } = require("@google-cloud/firestore");
  const db = new Firestore({ projectId });
  const things = db.collection("things");
  const value = { n: 1, at: Timestamp.now(), list: [1, { a: 2 }], none: null, bytes: Buffer.from("x") };
  await things.doc("a").set(value);
  assert.deepEqual((await things.doc("a").get()).data(), value);
  await things.doc("b").create({ n: 2 });
  await assert.rejects(things.doc("b").create({ n: 2 }), { code: 6 });
  await things.doc("b").update({ n: FieldValue.increment(3), "x.y": 1, at: FieldValue.serverTimestamp() });
  await things.doc("b").set({ x: { z: 2 } }, { merge: true });
  assert.deepEqual((await things.doc("b").get()).get("x"), { y: 1, z: 2 });
  const numbers = async (query) => (await query.get()).docs.map((one) => one.get("n"));
  assert.deepEqual(await numbers(things.where("n", ">", 0).orderBy("n", "desc").limit(2)), [5, 1]);
  assert.deepEqual(await numbers(things.where(Filter.or(Filter.where("n", "==", 1), Filter.where("n", "==", 7)))), [1]);
  assert.equal((await things.count().get()).data().count, 2);
  const raise = (transaction) =>
    transaction.get(things.doc("a")).then((one) => transaction.update(one.ref, { n: one.get("n") + 1 }));
  await Promise.all(Array.from({ length: 5 }, () => db.runTransaction(raise)));
  assert.equal((await things.doc("a").get()).get("n"), 6);
  const writer = db.bulkWriter();
  for (let i = 0; i < 20; i++) writer.set(things.doc(`bulk${i}`), { i });
  await writer.close();
  assert.equal((await things.count().get()).data().count, 22);

  const watch = (target, seeing, then) =>
    new Promise((resolve, reject) => {
      const seen = [];
      const stop = target.onSnapshot((snapshot) => {
        seen.push(seeing(snapshot));
        if (seen.length <= then.length) then[seen.length - 1]().catch(reject);
        else resolve((stop(), seen));
      }, reject);
    });
  const watched = db.collection("watched").doc("one");
  const writes = [() => watched.set({ n: 1 }), () => watched.delete()];
  assert.deepEqual(await watch(watched, (one) => one.get("n"), writes), [undefined, 1, undefined]);
  const changes = (snapshot) => snapshot.docChanges().map((change) => change.type);
  assert.deepEqual(await watch(watched.parent.where("n", ">", 0), changes, writes), [[], ["added"], ["removed"]]);
  assert.deepEqual((await db.listCollections()).map((one) => one.id), ["things"]);
  await db.recursiveDelete(things);
  assert.equal((await things.get()).size, 0);
  await db.terminate();
}

const parts = { storage, pubsub, firestore };
parts[process.argv[2]]().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
