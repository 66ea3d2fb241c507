"""What `--help` teaches at its end, command by command."""

from __future__ import annotations

EPILOG = """\
a first index, offline, on a laptop:
  zerogr config > config.yaml             write the documented default configuration
  zerogr index config.yaml                docids, pseudo-queries, trie, retriever: resumable, run it again after a fault
  zerogr search index "sort a list of dictionaries"
  zerogr status index
"""


DISTIL_EPILOG = """\
A task is a corpus with its instruction. For every document of every task the teacher, distil.model, is asked what the two
generators are asked when they index: for docids, and for queries under the task's instruction. Docids that break a rule and
queries off the topic are rejected with the reason; what is left is for fine-tuning the generators. Run it again after
a fault: finished shards are never made again.

  distil:
    model: Qwen/Qwen2.5-7B-Instruct     # a folder, a Hub name or an s3:// URI
    out: s3://bucket/teacher            # a folder of its own
    tasks:                              # none = the corpus and the instruction of this file
      - name: scifact
        source: path/to/scifact         # whatever corpus.source may be; corpus.title_column and its kin may stand here too
        instruction: Given a scientific claim, find the abstracts that support or refute it.
        max_documents: 20000            # sampled by seed; without it all

what it writes below distil.out, a row per pair; the assistant's turn is `prefill`, a space if there is one, `completion`:
  docids/part-000042.parquet            task, doc_id, prompt, prefill, completion
  queries/part-000042.parquet           task, doc_id, instruction, prompt, prefill, completion
  rejected/distil-part-000042.parquet   task, doc_id, stage, reason, detail

`zerogr config` explains every key of the section; `zerogr status` takes distil.out as well.
"""


PRETRAIN_EPILOG = """\
A query is a sentence of an article's first section; its answers are the titles of articles, written as the docid scheme title
writes them. The article itself has grade 4, what it says to see also 3 (its references, if it says nothing of the kind), what
its first section links to 2, other links 1. A grade is a weight; training.loss may make more of it.

  instruction: Given a sentence, find the articles that it is about.
  pretraining:
    model: HuggingFaceTB/SmolLM2-135M-Instruct
    source: path/to/articles.jsonl      # or a folder of such files, or pystdlib:
    out: pretraining
  retriever: {model: pretraining/pretrained}    # for `zerogr index`, once it is trained

a line of articles.jsonl; links are ids or titles, and everything but _id and title may be missing:
  {"_id": "Q7251", "title": "Alan Turing",
   "sections": [{"text": "Alan Turing was a mathematician. He ...", "links": ["Computer science", "Q131755"]}],
   "see_also": ["Turing machine"], "references": []}
"""


ABLATE_EPILOG = """\
The file itself is the variant `base`; every combination of every grid is another. Stages with the same inputs are made once and
copied. Run it again after a fault, or with more grids: what is done is kept.

  evaluation: {dataset: path/to/cranfield, strategies: [beam, greedy, "beam:normalise=vocabulary"]}
  ablation:
    out: ablation
    grids:
      - docids.scheme: [keywords, title, random]
      - queries.num_queries_per_document: [1, 2, 4, 8, 16]
      - {docids.min_words: [2], docids.max_words: [4, 8]}

what it writes below ablation.out:
  results.parquet    a row per variant and system: metrics, differences from base with p-values, counts, seconds
  report.html, .md   the same for people: what helped, tables, plots
  indexes/VARIANT/   the index, with its run files and queries.jsonl below evaluation/
"""


UPDATE_EPILOG = """\
The old version answers until the new one is published, and stays: --rollback VERSION brings it back. Run the same command again
after a fault; what is finished is kept. A document is replaced by removing and adding it in one update.

  zerogr update index --add new.jsonl                           new documents; the trie alone, nothing is learnt
  zerogr update index --add new.jsonl --method replay           and the retriever learns them
  zerogr update index --remove outdated.txt                     they cannot be found from this version on
"""


SUBMIT_EPILOG = """\
The job carries the configuration, the file of --remove and this package's code; the cluster's image has what it depends on. The
index and what is read must be where every node finds it: s3://, or a path that all of them mount. Credentials belong into the
environment of the nodes. Stop a job, and submit it again later: it goes on where it stopped.

  zerogr submit config.yaml --address http://127.0.0.1:8265              `index`, with its --set and --rebuild
  zerogr submit --address ... -- ablate config.yaml --set seed=1         any command that writes or measures stands behind --
  zerogr submit --address ... --gpus 1 -- evaluate s3://bucket/index --dataset s3://bucket/scifact --out s3://bucket/results
  zerogr submit --address ... --gpus 1 -- update s3://bucket/index --add s3://bucket/new.jsonl --method replay
"""


STUDY_EPILOG = """\
The corpus is cut into D0, which the retriever is trained on, and increments that `zerogr update` adds one after the other.
After each, the judged queries of D0 and of the increment are asked. Run it again after a fault; what is measured is kept.

  evaluation: {dataset: path/to/scifact}
  study:
    out: study
    splits: [test, train]
    baselines: [bm25, minilm]
    grids:
      - {docids.scheme: [keywords, kmeans], update.method.name: [none, finetune, replay, memit, dome, certificate]}
      - {docids.scheme: [keywords], update.method.name: [dome], update.method.num_queries: [1, 4, 7]}

what it writes below study.out:
  results.json          a row per baseline and variant: F_n, GA_n, hits@1, @10, @100, MRR@10, seconds per document
  report.html, .md      the same for people: one table, plots
  parts/, indexes/      the corpora of D0, D1, ..., and an index per docid scheme
"""
