"""The lab (`python3 -m tests.lab up`): a bastion and two GPU hosts in containers, not alike on purpose.

The second host is reached through the bastion, as a user with sudo, on another port, with its store on another path.
"""

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
            "model_store": "/data/models",
        },
    ),
]
