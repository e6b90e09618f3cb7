create table traces(row integer primary key, id text, stage integer, arm text, seed integer, bench text, attack text,
    intent text, outcome text, key text, place integer, head text,
    band text, chance real, positive integer);
create index by_key on traces(key);
create index by_id on traces(id);
create table tags(kind text, value text, row integer);
create index by_tag on tags(kind, value, row);
create index by_row on tags(row);
create table notes(trace text, kind text, stage integer, place integer);
create index by_trace on notes(trace);
create virtual table words using fts5(prompt, thinking, answer, content='', detail='none');
