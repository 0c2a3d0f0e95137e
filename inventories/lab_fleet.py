"""The lab with four GPU hosts (`python3 -m tests.lab up --gpus 4`), for rollouts: a light service, in stores of its own."""

SSH = {
    "ssh_user": "root",
    "ssh_key": "tests/lab/state/id_ed25519",
    "ssh_known_hosts_file": "tests/lab/state/known_hosts",
    "ssh_strict_host_key_checking": "yes",
}

bastion = [("lab-bastion", {**SSH, "ssh_hostname": "10.77.2.10"})]

gpu_hosts = [
    ("lab-gpu1", {**SSH, "ssh_hostname": "10.77.2.11"}),
    (
        "lab-gpu2",
        {
            **SSH,
            "ssh_hostname": "10.77.2.12",
            "ssh_port": 2222,
            "ssh_user": "ops",
            "_sudo": True,
            "ssh_config_file": "tests/lab/state/ssh_config",
        },
    ),
    ("lab-gpu3", {**SSH, "ssh_hostname": "10.77.2.13"}),
    ("lab-gpu4", {**SSH, "ssh_hostname": "10.77.2.14"}),
]
