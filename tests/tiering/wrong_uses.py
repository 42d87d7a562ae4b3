"""Wrong uses of both commands, one a line: the command line, and words that its one sentence must hold.

`h` is kvtier-harness, `k` is kvtier. Each line is refused with exit code 64, unless `-> CODE` says otherwise.
test_wrong_uses.py reads this list and makes the files that it names.
"""

from __future__ import annotations

REFUSED = """
# numbers
h run load --processes 1e3 | '1e3' is not a valid integer
h run load --processes 0x10 | '0x10' is not a valid integer
h run load --processes -5 | --processes is -5; it must be at least 1
h run load --processes 99999999999999999999999 | --processes is 99999999999999999999999; it must be at most 4096
h run load --processes NaN | 'NaN' is not a valid integer
h run load --seconds nan | --seconds is nan; it takes a finite number
h run load --seconds inf | --seconds is inf; it takes a finite number
h run load --seconds -inf | --seconds is -inf; it takes a finite number
h run load --seconds 1e309 | --seconds is inf; it takes a finite number
h run load --seconds -0.001 | --seconds is -0.001; it must be at least 0
h run load --seconds 1e9 | --seconds is 1000000000.0; it must be at most 2.592e+06
h run load --seconds '' | '' is not a valid float
h run load --seconds 3s | '3s' is not a valid float
h run load --seed -1 | --seed is -1; it must be at least 0
h run load --seed 4294967296 | --seed is 4294967296; it must be at most 4294967295
h run load --seed 1.5 | '1.5' is not a valid integer
h run load --slots 0 | --slots is 0; it must be at least 2
h run load --slots 99999999 | --slots is 99999999; it must be at most
h run load --read-threads 0 | --read-threads is 0; it must be at least 1
h run load --write-threads 5000 | --write-threads is 5000; it must be at most 1024
h run load --tokens-per-block 0 | --tokens-per-block is 0
h run load --tokens-per-block 1000000000 | it must be at most 65536
h run load --requests 0 | --requests is 0; it must be at least 1
h run load --requests 99999999999 | it must be at most 10000000
h run load --speed -1 | --speed is -1.0; it must be at least 0
h run load --speed nan | --speed is nan; it takes a finite number
h run load --speed 1e300 | --speed is 1e+300; it must be at most
h run load --window 0 | --window is 0; it must be at least 1
h run load --stall-seconds 0 | --stall-seconds is 0.0; it must be at least 0.1
h run load --stall-seconds inf | --stall-seconds is inf
h run load --trace-every -1 | --trace-every is -1
h run load --watch-windows nan | --watch-windows is nan
h run sharing --blocks 0 | --blocks is 0; it must be at least 1
h run sharing --processes 1 | --processes is 1; it must be at least 2
h run sharing --slots 3 | --slots is 3; it must be at least 16, twice --blocks
h run soak --seconds 0 | --seconds is 0.0; it must be at least 1
h run soak --pace nan | --pace is nan
h run soak --removals -1 | --removals is -1.0
h run crash --processes 1 | --processes is 1
h run crash --chains 0 | --chains is 0
h run capacity --keeps 2 | --keeps is 2.0; it must be at most 1
h run capacity --slack -1 | --slack is -1.0
h run capacity --evictors -1 | --evictors is -1
h run capacity --slots 2 | --slots is 2; it must be at least 32, four times a job
h run starvation --hung-calls 0 | --hung-calls is 0
h run starvation --hung-seconds-max nan | --hung-seconds-max is nan
h run starvation --cut-seconds 5 | --cut-seconds is 5; it must be above --hung-seconds-max, which is 15
h run faults --config-every 0 | --config-every is 0
h run contract --slots 1 | --slots is 1
h conform memory --seconds nan | --seconds is nan
h conform memory --seconds -1 | --seconds is -1.0; it must be at least 0
h conform memory --seconds inf | --seconds is inf
h conform memory --processes nan | 'nan' is not a valid integer
h conform memory --seed -1 | --seed is -1
h conform kvtier --read-threads 0 | --read-threads is 0
h observe --seconds nan | --seconds is nan
h watch root --seconds nan | --seconds is nan
h watch root --seconds inf | --seconds is inf
h watch root --every 0 | --every is 0.0; it must be at least 0.1
h watch root --every nan | --every is nan
h mutants ReturnsStaleSlots --seed -1 | --seed is -1
h false-alarms --runs 0 | --runs is 0
h false-alarms --runs nan | --runs is 'nan'; it takes a whole number
h findings --seed x | --seed is 'x'; it takes a whole number
k evict root --max-bytes 1GB --high-water nan | nan
k evict root --max-bytes 1GB --high-water 2 | 2
k evict root --max-bytes 1GB --low-water 0 | 0
k evict root --max-bytes 1GB --low-water 0.99 | 0.99
k evict root --max-bytes 1GB --low-water -inf | inf
k evict root --max-bytes 1GB --share m=nan | nan
k evict root --max-bytes 1GB --share m=-1 | -1
k evict root --max-bytes 1GB --share m=inf | inf
k evict root --max-bytes 1GB --every 0 | 0
k evict root --max-bytes 1GB --every nan | nan
k evict root --max-bytes 1GB --every inf | inf
# sizes
h run load --block-bytes 0 | 0
h run load --block-bytes 4095 | --block-bytes is 4095; it must be at least 4096
h run load --block-bytes 4097 | --block-bytes is 4097; it must be a multiple of 4096
h run load --block-bytes 1PiB | it must be at most 1073741824
h run load --block-bytes 12XB | '12XB'
h run load --block-bytes '' | ''
h run load --block-bytes -4096 | -4096
h run load --block-bytes nan | nan
h run capacity --max-bytes 0 | 0
h run capacity --max-bytes 1ZB | '1ZB'
h run capacity --max-bytes 1MiB | --max-bytes is 1048576; it must be at least 67108864, 8 times all --kept
h conform memory --block-bytes 5 | --block-bytes is 5
k evict root | no limit
k evict root --max-bytes '' | ''
k evict root --max-bytes 0 | 0
k evict root --max-bytes -1 | -1
k evict root --max-bytes 1XB | '1XB'
k evict root --max-bytes nan | nan
k evict root --min-free-bytes nan | nan
# tiers and their options
h run load --tier '' | --tier is '', which is empty
h run load --tier ' ' | --tier is ' ', which is empty
h run load --tier kvtier: | tier is 'kvtier:'; module:Class takes
h run load --tier a:b:c | module:Class takes
h run load --tier os:path | os has no Adapter class named 'path'
h run load --tier KVTIER | tier is 'KVTIER'
h run load --tier kvteir | (did you mean 'kvtier'?)
h run load --tier ../x:Y | module:Class takes
h run load --tier broken_import:Tier | cannot be imported: ZeroDivisionError
h run load --tier broken_syntax:Tier | cannot be imported: SyntaxError
h run load --tier-option '' | --tier-option is ''
h run load --tier-option x | --tier-option is 'x'; it takes NAME=VALUE
h run load --tier-option =1 | --tier-option is '=1'; it takes NAME=VALUE
h run load --tier-option x=1 | unknown option 'x'; valid options: root_dir
h run load --tier-option root_dir=/etc | root_dir is not the tier's to choose here; give --root-dir
h run load --tier-option block_bytes=8192 | give --block-bytes
h run load --tier-option io=null | io is None; valid choices: auto, direct, buffered
h run load --tier-option capacity=[] | capacity is []
h run load --tier-option 'capacity={"max_bytes": -1}' | -1
h run load --tier-option 'capacity={"max_bytes": 1e400}' | inf
h run load --tier-option hung_seconds=Infinity | hung_seconds is inf
h run load --tier-option hung_seconds=NaN | hung_seconds is nan
h run load --tier-option thread_nice=99 | thread_nice is 99
h run load --tier-option hash_algorithm=md5 | hash_algorithm is 'md5'; valid choices: sha256
h run load --tier-option file_mode=0 | file_mode is
h run load --tier-option store_queue_bytes_max=1 | store_queue_bytes_max is 1
h run load --tier-option io=auto --tier-option io=direct | --tier-option io is given twice
h run load --tier memory --tier-option a=1 | unknown option 'a'; the reference tier takes none
h run load --tier kvtier-stack --tier-option cpu_chunks=-1 | num_chunks is -1
h run sharing --tier-option x=1 | unknown option 'x'
h run soak --tier-option x=1 | unknown option 'x'
h run crash --tier-option x=1 | unknown option 'x'
h run capacity --tier-option x=1 | unknown option 'x'
h run starvation --tier-option x=1 | unknown option 'x'
h run faults --tier-option x=1 | unknown option 'x'
h run contract --tier-option x=1 | unknown option 'x'
h run determinism --tier-option x=1 | unknown option 'x'
h run determinism --tier-option seed_policy=env | contradicts determinism, which tries them all
h conform memory --tier-option x=1 | unknown option 'x'
h conform kvtier --tier-option io=sideways | io is 'sideways'
h conform nosuch | tier is 'nosuch'
h conform '' | tier is ''
h observe --tier nosuch | tier is 'nosuch'; valid choices
h observe --tier-option x=1 | unknown option 'x'
h false-alarms --tiers nosuch | --tiers is 'nosuch'
# names
h nosuch | No such command 'nosuch'
h run lod | No such command 'lod'
h run load extra | extra
h run load --processes | requires an argument
h run load --nosuch | No such option
h conform | Missing argument
h conform memory --scenario nosuch | --scenario is 'nosuch'; valid choices: calls, contract
h run starvation --job-blocks '' | --job-blocks is ''
h run starvation --job-blocks 0 | --job-blocks is '0'; it takes numbers from 1 to 65536
h run starvation --job-blocks a,b | --job-blocks is 'a,b'
h run starvation --job-blocks 1,,2 | --job-blocks is '1,,2'
h run starvation --job-blocks 99999999999 | --job-blocks is '99999999999'
h run faults --fault nosuch | --fault is 'nosuch'; valid:
h run faults --fault '' | --fault is '', which is empty
h run determinism --python /nosuch/python | --python is '/nosuch/python', which does not run
h run determinism --python '' | --python is '', which is empty
h run determinism --python /bin/true | --python is '/bin/true', which is no Python
h run power_loss --file-systems fat12 | --file-systems has fat12; valid choices
h run power_loss --ways x | --ways has x; valid choices
h run power_loss --failures meteor | --failures has meteor; valid choices
h mutants ReturnStaleSlots | (did you mean 'ReturnsStaleSlots'?)
h false-alarms --scenarios sharring | (did you mean 'sharing'?)
h findings --case nosuch | --case is 'nosuch'; valid choices
h list extra | extra
k nosuch | No such command 'nosuch'
k inspect | Missing argument
k inspect root extra | extra
k evict root --max-bytes 1GB --share x | 'x'
k evict root --max-bytes 1GB --share =1 | '=1'
k evict root --max-bytes 1GB --every 1 --once | --once and --every
k remove root | Missing argument
k remove root nosuch | 'nosuch'; valid choices
k remove root ../.. | '../..'; valid choices
k remove root . --yes | '.'; valid choices
k remove root '' | ''
# addresses
h watch root --seconds 0 --metrics nonsense | --metrics is 'nonsense'; it takes HOST:PORT
h watch root --seconds 0 --metrics '' | --metrics is ''; it takes HOST:PORT
h watch root --seconds 0 --metrics 127.0.0.1:99999 | it takes HOST:PORT
h watch root --seconds 0 --metrics 'a b:1' | it takes HOST:PORT
h watch root --seconds 0 --metrics 127.0.0.1:-1 | it takes HOST:PORT
# folders
h run load --root-dir '' | --root-dir is '', which is empty; it takes a path
h run load --root-dir fifo | /fifo', which is not a directory
h run load --root-dir file | /file', which is not a directory
h run load --root-dir loop | /loop', which
h run load --root-dir dangling | /dangling', which does not exist
h run load --root-dir missing | /missing', which does not exist
h run load --root-dir /proc | '/proc', where no folder can be made
h run load --root-dir /dev/null | '/dev/null', which is not a directory
h run load --root-dir ~nosuchuser/x | there is no home folder of '~nosuchuser'
h run load --runs-dir '' | --runs-dir is '', which is empty
h run load --runs-dir file | cannot be made: Not a directory
h run load --runs-dir fifo | cannot be made: Not a directory
h run load --runs-dir loop | cannot be made
h run load --runs-dir file/sub | cannot be made: Not a directory
h conform memory --root-dir '' | --root-dir is ''
h conform memory --root-dir missing | /missing', which does not exist
h conform memory --runs-dir '' | --runs-dir is ''
h observe --root-dir '' | --root-dir is ''
h mutants ReturnsStaleSlots --runs-dir '' | --runs-dir is ''
h watch '' | ROOT_DIR is '', which is empty
h watch missing --seconds 0 | missing
h watch file --seconds 0 | file
h watch fifo --seconds 0 | fifo
k inspect '' | ''
k inspect missing | missing
k inspect file | file
k inspect fifo | fifo
k verify '' | ''
k verify missing | missing
k verify file | file
k evict '' --max-bytes 1GB | ''
k evict missing --max-bytes 1GB | missing
k evict file --max-bytes 1GB | file
k remove '' x | ''
k remove missing x | missing
# files
h run load --trace '' | --trace is '', which is empty
h run load --trace folder | /folder' is a directory; it must be a regular file
h run load --trace fifo | /fifo' is a FIFO; it must be a regular file
h run load --trace socket | it is a socket
h run load --trace /dev/zero | '/dev/zero' is a device
h run load --trace /dev/random | '/dev/random' is a device
h run load --trace /proc/self/mem | cannot be read
h run load --trace loop | Too many levels of symbolic links
h run load --trace dangling | No such file or directory
h run load --trace empty | line 1: the file is empty
h run load --trace bin | line 1: not JSON
h run load --trace latin | line 1: not JSON
h run load --trace deep | line 1: not JSON
h run load --trace huge-number | line 1: not JSON
h run load --trace no-tree | hash_ids must form a prefix tree
h run load --options '' | --options is '', which is empty
h run load --options fifo | 'fifo' is a FIFO
h run load --options folder | 'folder' is a directory
h run load --options /dev/zero | '/dev/zero' is a device
h run load --options bin | 'bin' is not TOML
h run load --options latin | 'latin' is not TOML
h run load --options loop | Too many levels
h observe --options missing | 'missing' cannot be read
h mutants ReturnsStaleSlots --write folder | --write is 'folder', which is a directory
h mutants ReturnsStaleSlots --write fifo | --write is 'fifo', which is a FIFO
h findings --write folder | --write is 'folder', which is a directory
# runs
h check '' | RUN_DIR is '', which is empty
h check missing --junit nofolder/junit.xml | --junit is 'nofolder/junit.xml', whose folder does not exist
h run load --junit nofolder/junit.xml | --junit is 'nofolder/junit.xml'
h false-alarms --log file | 'file' is no log of false-alarms
h false-alarms --mutants --mutant LeaksSlot | --mutant is 'LeaksSlot' (did you mean 'LeaksSlots'?)
h check missing | 'missing' is not a run folder
h check file | 'file' is not a run folder
h check fifo | 'fifo' is not a run folder
h check folder | 'folder' is not a run folder
h check / | '/' is not a run folder
h check /dev/null | '/dev/null' is not a run folder
h report '' | RUN_DIR is ''
h report missing | 'missing' is not a run folder
h compare run | Missing argument
h compare run missing | 'missing' is not a run folder
h compare '' run | RUN_A is ''
h compare run '' | RUN_B is ''
h compare run run --output '' | --output is ''
h compare run run --output folder | --output is 'folder', which is a directory
h compare run run --output fifo | --output is 'fifo', which is a FIFO
h compare run run --output /dev/full | --output is '/dev/full', which is a device
h compare run run --output missing/x.html | --output is 'missing/x.html', whose folder does not exist
h compare run run --output loop | --output is 'loop', which cannot be used
h compare run run run | run
# commands of the Makefile
h overhead --runs 0 | --runs is 0; it must be at least 1
h overhead --processes 0 | --processes is 0; it must be at least 1
h overhead --requests -1 | --requests is -1
h overhead --root-dir '' | --root-dir is '', which is empty
h overhead --block-bytes 5 | --block-bytes is 5
h shared-volume --tier nosuch | tier is 'nosuch'
h shared-volume --seed -1 | --seed is -1
h shared-volume --runs-dir '' | --runs-dir is '', which is empty
h shared-volume --scenario nosuch | 'nosuch' is not one of
h bench table --rounds 0 | --rounds is 0
h bench table --dir missing | --dir is 'missing', which is no folder
h bench table --out '' | --out is '', which is empty
h bench table --section nosuch | 'nosuch' is not one of
h bench compare --slower nan | --slower is nan
h bench compare --slower 0 | --slower is 0.0; it must be at least 1
h bench compare --trials 0 | --trials is 0
h bench eviction --files -1 | --files is -1
h bench eviction --seconds inf | --seconds is inf
h bench eviction --dir file | --dir is 'file', which is no folder
h bench nosuch | No such command
# interrupted while it starts
h run load --tier interrupted:Tier | interrupted -> 130
h run load --tier terminated:Tier | terminated -> 143
h conform interrupted:Tier | interrupted -> 130
"""
