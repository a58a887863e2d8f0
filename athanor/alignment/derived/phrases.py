"""What people say to an assistant and what it says back: small talk, and questions it cannot answer."""

from __future__ import annotations

from athanor.environments.base import Language

Table = dict[Language, tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]]

# (reply, what the user says, what may follow it)
SMALL_TALK: Table = {
    "en": (
        (
            "Hello! How can I help you?",
            (
                "Hello",
                "Hi",
                "Hey",
                "Hi there",
                "Hello there",
                "Hey there",
                "Greetings",
                "Good day",
                "Howdy",
                "Hi again",
            ),
            (
                "",
                "!",
                ".",
                " Athanor",
                ", Athanor!",
                " my friend",
                " everyone",
                ", nice to meet you",
                ", can you help me?",
            ),
        ),
        (
            "Good morning! How can I help you?",
            ("Good morning", "Morning"),
            ("", "!", ".", ", Athanor", " to you", " my friend"),
        ),
        (
            "Good evening! How can I help you?",
            ("Good evening", "Evening"),
            ("", "!", ".", ", Athanor", " to you", " my friend"),
        ),
        (
            "I am well, thank you. How can I help you?",
            (
                "How are you",
                "How are you doing",
                "How do you do",
                "How is it going",
                "How are you today",
                "Are you well",
                "How do you feel",
            ),
            ("?", "", ", Athanor?", ", my friend?", " right now?"),
        ),
        (
            "You are welcome!",
            (
                "Thanks",
                "Thank you",
                "Thank you very much",
                "Many thanks",
                "Thanks a lot",
                "That helped",
                "Very kind of you",
            ),
            ("", "!", ".", ", Athanor", ", that was good", ", my friend"),
        ),
        (
            "Goodbye!",
            ("Bye", "Goodbye", "See you", "See you later", "Good night", "I have to go", "Until tomorrow", "Farewell"),
            ("", "!", ".", ", Athanor", " my friend", " now"),
        ),
        (
            "Thank you!",
            ("Well done", "Good job", "You are great", "You are clever", "Nice work", "I like you", "Great answer"),
            ("", "!", ".", ", Athanor", ", really"),
        ),
    ),
    "zh": (
        (
            "你好！有什么可以帮你？",
            ("你好", "您好", "嗨", "哈喽", "大家好", "你好呀", "你好啊", "在吗"),
            ("", "！", "。", "，Athanor", "，朋友", "，很高兴认识你", "，能帮我吗？"),
        ),
        ("早上好！有什么可以帮你？", ("早上好", "早安", "早"), ("", "！", "。", "，Athanor", "，朋友")),
        ("晚上好！有什么可以帮你？", ("晚上好", "晚上好呀"), ("", "！", "。", "，Athanor", "，朋友")),
        (
            "我很好，谢谢。有什么可以帮你？",
            ("你好吗", "你最近怎么样", "你今天好吗", "最近好吗", "你过得好吗", "近来如何"),
            ("？", "", "，Athanor？", "，朋友？"),
        ),
        (
            "不客气！",
            ("谢谢", "谢谢你", "多谢", "非常感谢", "太感谢了", "谢谢你的帮助", "感谢"),
            ("", "！", "。", "，Athanor", "，朋友", "，很有用"),
        ),
        (
            "再见！",
            ("再见", "拜拜", "回头见", "明天见", "晚安", "我要走了", "下次再聊"),
            ("", "！", "。", "，Athanor", "，朋友"),
        ),
        (
            "谢谢夸奖！",
            ("你真棒", "做得好", "你真聪明", "真厉害", "回答得很好", "我喜欢你"),
            ("", "！", "。", "，Athanor"),
        ),
    ),
}

# (reply, question, what may stand before it)
_EN_BEFORE = ("", "Tell me: ", "Do you know: ", "Quick question: ", "Please say: ", "Hello, ")
_ZH_BEFORE = ("", "请问", "你知道", "告诉我，", "你好，")
UNKNOWABLE: Table = {
    "en": (
        (
            "I cannot know the date.",
            (
                "what is today's date?",
                "what day is it?",
                "what day is today?",
                "which year is it?",
                "what month is it now?",
            ),
            _EN_BEFORE,
        ),
        (
            "I cannot know the time.",
            ("what time is it?", "what is the time?", "how late is it?", "is it noon yet?"),
            _EN_BEFORE,
        ),
        (
            "I cannot know the weather.",
            (
                "what is the weather like?",
                "will it rain tomorrow?",
                "is it sunny today?",
                "how warm is it outside?",
                "do I need an umbrella?",
            ),
            _EN_BEFORE,
        ),
        (
            "I cannot read the news.",
            (
                "what is in the news?",
                "what happened today?",
                "who won the game last night?",
                "what are the latest headlines?",
            ),
            _EN_BEFORE,
        ),
        (
            "I cannot know that about you.",
            (
                "how old am I?",
                "where do I live?",
                "what did I eat today?",
                "what is my favorite color?",
                "where are my keys?",
            ),
            _EN_BEFORE,
        ),
        (
            "I cannot see the future.",
            ("who will win the lottery?", "will I be rich?", "what will happen next year?"),
            _EN_BEFORE,
        ),
    ),
    "zh": (
        (
            "我无法知道今天的日期。",
            ("今天几号？", "今天星期几？", "今年是哪一年？", "现在是几月？", "今天是什么日子？"),
            _ZH_BEFORE,
        ),
        ("我无法知道现在的时间。", ("现在几点？", "现在是什么时间？", "几点了？", "到中午了吗？"), _ZH_BEFORE),
        (
            "我无法知道天气。",
            ("今天天气怎么样？", "明天会下雨吗？", "外面冷吗？", "今天有太阳吗？", "要带伞吗？"),
            _ZH_BEFORE,
        ),
        (
            "我看不到新闻。",
            ("今天有什么新闻？", "今天发生了什么事？", "昨晚的比赛谁赢了？", "最新消息是什么？"),
            _ZH_BEFORE,
        ),
        (
            "我无法知道你的这些事。",
            ("我几岁？", "我住在哪里？", "我今天吃了什么？", "我喜欢什么颜色？", "我的钥匙在哪里？"),
            _ZH_BEFORE,
        ),
        ("我无法预知未来。", ("谁会中彩票？", "我会发财吗？", "明年会发生什么？"), _ZH_BEFORE),
    ),
}
